"""When are two facts one? Decided on their texts, borne out by their nearness; knows nothing of the database."""

from __future__ import annotations

from ruvllm.memory.likeness.minhash import jaccard
from ruvllm.memory.likeness.wording import normal, reworded, same_answer, same_names, same_question, telling_answer


def same_fact(first: tuple[str, str], second: tuple[str, str], similarity: float, limit: float) -> bool:
    """Whether two (question, answer) are about one question.

    One wording of it is enough, whatever the answers. Two wordings need texts nearer than `limit`, one answer that says
    something, and the same names, numbers and telling words: cosine alone puts exports beside imports (0.93 with
    MiniLM) and 2022 beside 2023 (0.98).
    """
    (question, answer), (other_question, other_answer) = first, second
    if same_question(question, other_question):
        return True
    if similarity < limit or not telling_answer(answer) or not same_answer(answer, other_answer):
        return False
    return reworded(question, other_question)


def same_statement(first: str, second: str, similarity: float, limit: float, jaccard_limit: float) -> bool:
    """Whether two statements say the same: both hold their whole fact, so all of it has to agree."""
    if normal(first) == normal(second) or same_question(first, second):
        return True
    if jaccard(first, second) >= jaccard_limit and same_names(first, second):
        return True
    return similarity >= limit and reworded(first, second)
