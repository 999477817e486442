"""Settings: read once, validated, named in every complaint."""

from pathlib import Path

import pytest

from ruvllm.errors import SettingsError
from ruvllm.settings import Settings, load_settings


def test_the_environment_sets_and_a_keyword_wins():
    settings = load_settings({"RUVLLM_SEARCH_K": "16", "RUVLLM_ACCEPT_GEMMA_TERMS": "yes"}, search_k=8)
    assert settings.search_k == 8
    assert settings.accept_gemma_terms


@pytest.mark.parametrize(
    ("variable", "value", "named"),
    [
        ("RUVLLM_SEARCH_K", "many", "RUVLLM_SEARCH_K: got 'many'"),
        ("RUVLLM_SEARCH_K", "65", "from 1 to 64"),
        ("RUVLLM_LADDER", "llama", "auto, lfm2, packaged"),
        ("RUVLLM_ACCEPT_GEMMA_TERMS", "perhaps", "true or false"),
        ("RUVLLM_EXPLORE", "nan", "RUVLLM_EXPLORE"),
        ("RUVLLM_TENNANT", "x", "RUVLLM_TENNANT: no such setting"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(variable, value, named):
    with pytest.raises(SettingsError, match=named.replace("(", r"\(")):
        load_settings({variable: value})


def test_settings_are_frozen_and_paths_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = load_settings({"RUVLLM_STATE_DIR": "state"})
    assert settings.state_dir == tmp_path / "state"
    with pytest.raises(AttributeError):
        settings.search_k = 1  # type: ignore[misc]


def test_the_usual_names_of_database_and_mlflow_are_read():
    settings = load_settings({"DATABASE_URL": "postgresql://db/x", "MLFLOW_TRACKING_URI": "http://127.0.0.1:5000"})
    assert settings.database_url == "postgresql://db/x"
    assert settings.tracking_uri == "http://127.0.0.1:5000"
    assert Settings(state_dir=Path("/s")).tracking_uri == "sqlite:////s/mlflow/mlflow.db"
