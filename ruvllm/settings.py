"""What a user can set, read once from the environment, validated, frozen. Makes no directory and touches no network.

Every setting is an environment variable `RUVLLM_<NAME>`; `DATABASE_URL` and `MLFLOW_TRACKING_URI` keep their usual
names. Dataclasses, not pydantic-settings: `import ruvllm` stays under half a second.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import get_type_hints

from ruvllm.errors import SettingsError

PROJECT_ROOT = Path(__file__).resolve().parent.parent
_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"0", "false", "no", "off"}
_USUAL_NAMES = {"database_url": "DATABASE_URL", "mlflow_tracking_uri": "MLFLOW_TRACKING_URI"}


def _cache_root() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "ruvllm"


@dataclass(frozen=True)
class Settings:
    """Settings of one process. Times in seconds, sizes in the unit that the name says."""

    state_dir: Path = PROJECT_ROOT / ".ruvllm"  # everything this checkout writes at run time
    cache_dir: Path = field(default_factory=_cache_root)  # model files and built wheels, shared by checkouts
    database_url: str = ""  # empty: the embedded server, supervised by us
    tenant: str = "default"
    ladder: str = "auto"  # auto | lfm2 | packaged; auto takes lfm2 where its files are there
    quantisation: str = "auto"  # of the lfm2 ladder; auto: what is on disk, else what fits this machine
    accept_gemma_terms: bool = False  # the packaged ladder's second tier is Gemma 3 270M
    encoder: str = "minilm"  # minilm | lfm2
    threads: int = 0  # per model; 0: measured at start
    vllm: str = (
        ""  # tiers that vLLM servers answer: "lfm2-350m=http://127.0.0.1:8101,http://127.0.0.1:8102;lfm2-2.6b=…"
    )
    vllm_key_file: str = ""  # holds their API key; empty: that of `ruvllm vllm up`, for servers of this machine
    vllm_python: str = ""  # an interpreter that has vLLM; empty: .venv-vllm of this checkout
    n_ctx: int = 2048
    snapshots_mb: int = 128  # of kept prompt states, per model; 0: none is kept
    wait_policy: str = "auto"  # auto | active | passive: how OpenMP's threads wait; auto looks at the machine
    model_memory_mb: int = 0  # that one model's process may take; 0: twice the tier's size and spare
    models_memory_mb: int = 0  # of all models loaded at once; 0: four fifths of what is free at the start
    recycle_growth: float = 1.5  # a model's process is replaced when it is this many times its first answer's size
    max_tokens: int = 48  # of an answer, unless the request says otherwise
    deadline_s: float = 60.0
    search_k: int = 32
    attention: str = "auto"  # auto | off: auto reorders what is found where the promoted router's bundle carries a part
    context_order: str = "best-last"  # best-first | best-last | both-ends: of what a model reads; docs/attention.md
    context_balance: float = 1.0  # of rank and newness (maximal marginal relevance); 1: by rank alone
    context_sentences: int = 0  # that a passage is cut to, those that bear on the question; 0: all of it
    explore: float = 0.1  # epsilon of the epsilon-greedy exploration
    explorer: str = "epsilon-greedy"  # epsilon-greedy | thompson: how tiers are explored; bins: by epsilon either way
    cascade_floor: float = (
        0.0  # an answer less sure of its words (0 to 1) is asked of the next tier, too; 0: never; no streams
    )
    confidence_floor: float = 0.0  # below it the fallback policy acts; 0: the bundle's own threshold
    collect_budget_s: float = 240.0  # oracle collection of a first night
    collect_budget_later_s: float = 75.0  # of the nights after it, which only add to the oracle
    collect_workers: int = 0  # Dask workers that share a night's collection; 0: this process does it
    dask_scheduler: str = ""  # "tls://HOST:8786" where the workers run elsewhere; empty: they are started here
    replay_capacity: int = 2000  # oracle questions of earlier nights that training sees again
    replay_by_domain: bool = False  # every domain the same share of them, however often it is asked about
    nightly_cron: str = "0 2 * * *"
    timezone: str = "UTC"
    alert_webhook_file: str = ""  # holds the address that late, failed and stuck runs call; empty: nobody is called
    host: str = "127.0.0.1"
    answer_cache: bool = False  # a question close to a well-answered one gets its answer; first: ruvllm cache calibrate
    judge: bool = False  # while nobody asks, the largest tier here scores answers of which nobody said anything
    access: str = "auto"  # auto | open | keys: who may ask the gateway (ruvllm/serving/keys.py)
    queue: int = 8  # requests that may wait for a model
    queue_tokens: int = 16384  # prompt tokens that may wait for a model
    key_concurrency: int = 4  # requests at once of a key that says nothing else
    spool_mb: int = 64  # of answers kept on disk while Postgres is away; 0: none is kept
    probe_key_file: str = ""  # holds the API key with which a night asks the gateway, where that wants one
    console: bool = True  # the page /console of the gateway; it holds no data, and asks with its reader's own key
    log_prompts: bool = False  # questions and answers in the gateway's log, where a request's privacy level is public
    otel_endpoint: str = ""  # every answer's spans go there: OTLP over HTTP, "http://127.0.0.1:4318/v1/traces"
    trace_share: float = 0.0  # of answers in [0, 1] whose spans go to MLflow, experiment ruvllm-gateway; 0: none
    gateway_url: str = ""  # of the gateway that a night asks, where that runs elsewhere; empty: this checkout's own
    gateway_port: int = 0  # 0: chosen once for this checkout and kept in the state directory
    prefect_api_url: str = ""  # of a Prefect server of your own, "http://HOST:4200/api"; empty: this checkout's own
    prefect_port: int = 0
    mlflow_port: int = 0
    mlflow_tracking_uri: str = ""  # empty: sqlite and local artifacts in the state directory
    mlflow_identities_file: str = ""  # who acts as trainer, promoter, reviewer there (ruvllm registry identities)
    writeback_threshold: float = 0.75  # quality in [0, 1]
    duplicate_cosine: float = 0.95
    duplicate_jaccard: float = 0.8
    paraphrase_cosine: float = 0.0  # of a fact in other words; 0: the encoder's calibrated value
    topic_cosine: float = 0.0  # of two facts of one topic; 0: the encoder's calibrated value
    latency_weight: float = 0.1  # lambda of U = Q - lambda L - mu C, per second
    cost_weight: float = 0.5  # mu of U = Q - lambda L - mu C
    replica: bool = True  # memory is read in process where that is possible, else from Postgres
    replica_staleness_s: float = 5.0  # a replica further behind Postgres than this is not asked
    replica_poll_s: float = 0.5  # how often it looks for changes when nothing wakes it
    replica_lock: bool = True  # its graph is locked in memory, as far as `ulimit -l` allows
    replica_memory_mb: int = 0  # of vectors, graph and arrays; 0: no bound

    def __post_init__(self) -> None:
        _one_of("ladder", self.ladder, ("auto", "lfm2", "packaged"))
        _one_of("encoder", self.encoder, ("minilm", "lfm2"))
        _one_of("quantisation", self.quantisation, ("auto", "Q4_0", "Q4_K_M", "Q5_K_M", "Q8_0", "F16"))
        _one_of("attention", self.attention, ("auto", "off"))
        _one_of("context_order", self.context_order, ("best-first", "best-last", "both-ends"))
        _between("context_balance", self.context_balance, 0.0, 1.0)
        _between("context_sentences", self.context_sentences, 0, 1000)
        _between("explore", self.explore, 0.0, 1.0)
        _one_of("explorer", self.explorer, ("epsilon-greedy", "thompson"))
        _between("trace_share", self.trace_share, 0.0, 1.0)
        _between("cascade_floor", self.cascade_floor, 0.0, 1.0)
        _between("confidence_floor", self.confidence_floor, 0.0, 1.0)
        _between("writeback_threshold", self.writeback_threshold, 0.0, 1.0)
        _between("duplicate_cosine", self.duplicate_cosine, 0.5, 1.0)
        _between("duplicate_jaccard", self.duplicate_jaccard, 0.1, 1.0)
        _between("paraphrase_cosine", self.paraphrase_cosine, 0.0, 1.0)
        _between("topic_cosine", self.topic_cosine, 0.0, 1.0)
        _between("n_ctx", self.n_ctx, 512, 32768)
        _between("max_tokens", self.max_tokens, 1, 1024)
        _between("snapshots_mb", self.snapshots_mb, 0, 2**20)
        _one_of("wait_policy", self.wait_policy, ("auto", "active", "passive"))
        _between("model_memory_mb", self.model_memory_mb, 0, 2**24)
        _between("models_memory_mb", self.models_memory_mb, 0, 2**24)
        _between("recycle_growth", self.recycle_growth, 1.05, 100.0)
        _between("threads", self.threads, 0, 256)
        _between("search_k", self.search_k, 1, 64)
        _between("collect_workers", self.collect_workers, 0, 1024)
        _between("replay_capacity", self.replay_capacity, 16, 1_000_000)
        _between("latency_weight", self.latency_weight, 0.0, 100.0)
        _between("cost_weight", self.cost_weight, 0.0, 100.0)
        _between("replica_staleness_s", self.replica_staleness_s, 0.01, 3600.0)
        _between("replica_poll_s", self.replica_poll_s, 0.01, 3600.0)
        _between("replica_memory_mb", self.replica_memory_mb, 0, 2**24)
        _one_of("access", self.access, ("auto", "open", "keys"))
        _between("queue", self.queue, 0, 10_000)
        _between("queue_tokens", self.queue_tokens, 1, 2**31)
        _between("key_concurrency", self.key_concurrency, 1, 10_000)
        _between("spool_mb", self.spool_mb, 0, 2**20)
        for port in ("gateway_port", "prefect_port", "mlflow_port"):
            _between(port, getattr(self, port), 0, 65535)
        for seconds in ("deadline_s", "collect_budget_s", "collect_budget_later_s"):
            _between(seconds, getattr(self, seconds), 1.0, 86400.0)
        for url in ("gateway_url", "prefect_api_url"):
            if (got := getattr(self, url)) and not got.startswith(("http://", "https://")):
                raise SettingsError(f"{_variable(url)}: got {got!r}, want http://HOST:PORT or https://…")
        if not self.tenant.strip():
            raise SettingsError("RUVLLM_TENANT: got an empty name, want the tenant's name, for example 'default'")

    @property
    def models_dir(self) -> Path:
        return self.cache_dir / "models"

    @property
    def run_dir(self) -> Path:
        """Process ids, ports and logs."""
        return self.state_dir / "run"

    @property
    def router_dir(self) -> Path:
        """The local cache of promoted bundles: `<sha256>/` and `current.json`."""
        return self.state_dir / "router"

    @property
    def spool_dir(self) -> Path:
        """Answers that Postgres could not take yet."""
        return self.state_dir / "spool"

    @property
    def replica_dir(self) -> Path:
        """Saved bases of the replica; made anew from Postgres where they are missing."""
        return self.state_dir / "replica"

    @property
    def tracking_uri(self) -> str:
        return self.mlflow_tracking_uri or f"sqlite:///{self.state_dir / 'mlflow' / 'mlflow.db'}"


def _one_of(name: str, got: str, wanted: tuple[str, ...]) -> None:
    if got not in wanted:
        raise SettingsError(f"{_variable(name)}: got {got!r}, want one of {', '.join(wanted)}")


def _between(name: str, got: float, low: float, high: float) -> None:
    if not low <= got <= high:
        raise SettingsError(f"{_variable(name)}: got {got}, want a number from {low} to {high}")


def _variable(name: str) -> str:
    return _USUAL_NAMES.get(name, f"RUVLLM_{name.upper()}")


def _parse(name: str, kind: type, text: str) -> object:
    if kind is bool:
        if text.lower() in _TRUE | _FALSE:
            return text.lower() in _TRUE
        raise SettingsError(f"{_variable(name)}: got {text!r}, want true or false")
    try:
        return Path(text).expanduser().absolute() if kind is Path else kind(text)
    except ValueError as error:
        raise SettingsError(f"{_variable(name)}: got {text!r}, want a value of type {kind.__name__}") from error


def load_settings(environment: Mapping[str, str] | None = None, **overrides: object) -> Settings:
    """Settings from `environment` (the process's by default); a keyword wins over it.

    Raises:
        SettingsError: a value does not parse or is out of range, or a RUVLLM_ variable names no setting.
    """
    environment = os.environ if environment is None else environment
    kinds = get_type_hints(Settings)
    known = {_variable(field.name): field.name for field in fields(Settings)}
    unknown = sorted(k for k in environment if k.startswith("RUVLLM_") and k not in known and k not in _NOT_SETTINGS)
    if unknown:
        raise SettingsError(f"{unknown[0]}: no such setting; the settings are {', '.join(sorted(known))}")
    values: dict[str, object] = {
        name: _parse(name, kinds[name], environment[variable])
        for variable, name in known.items()
        if environment.get(variable)
    }
    return Settings(**{**values, **overrides})  # type: ignore[arg-type]  # kinds were checked in _parse


def to_environment(settings: Settings) -> dict[str, str]:
    """The variables that make `load_settings` in a child process give `settings` again."""
    return {_variable(field.name): str(getattr(settings, field.name)) for field in fields(settings)}


_NOT_SETTINGS = {"RUVLLM_FAILPOINT", "RUVLLM_WHEEL_CACHE"}  # read where they act: tests' failpoints, the Makefile
