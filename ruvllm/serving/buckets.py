"""A bucket that is emptied by what is taken and fills evenly over a minute. Knows nothing of what is counted.

Whatever is asked at once may be up to a minute's worth; over any stretch of t minutes no more than 1 + t times that.
"""

from __future__ import annotations

from dataclasses import dataclass

_MINUTE_S = 60.0


@dataclass
class Bucket:
    """`level` of `per_minute` were left at `at`, in seconds of one clock."""

    per_minute: int
    level: float
    at: float

    @classmethod
    def full(cls, per_minute: int | None, now: float) -> Bucket | None:
        """None where there is no limit."""
        return None if per_minute is None else cls(per_minute, float(per_minute), now)

    def wait_s(self, amount: float, now: float) -> float:
        """Seconds until `amount` can be taken; 0 where it can be now. What is over a minute's worth waits for all."""
        lacking = min(amount, self.per_minute) - self._level(now)
        return max(0.0, lacking / self._rate)

    def take(self, amount: float, now: float) -> None:
        """Take `amount`, down to nothing: one that is larger than the bucket empties it."""
        self.level, self.at = max(0.0, self._level(now) - amount), max(self.at, now)

    def remaining(self, now: float) -> int:
        return int(self._level(now))

    def reset_s(self, now: float) -> float:
        """Seconds until it is full again."""
        return (self.per_minute - self._level(now)) / self._rate

    @property
    def _rate(self) -> float:
        return self.per_minute / _MINUTE_S

    def _level(self, now: float) -> float:
        return min(float(self.per_minute), self.level + max(0.0, now - self.at) * self._rate)
