"""What the native relay makes of a case or an option, for docs/debezium-parity.md."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Same:
    """A case of this suite, which passes."""

    case: str

    def __str__(self) -> str:
        return f"pass: {self.case}"


@dataclass(frozen=True, slots=True)
class Refused:
    """The native relay refuses a file with this key and value, and names the key."""

    key: str
    value: str
    like_debezium: bool = False

    def __str__(self) -> str:
        return f"{'pass: both refuse' if self.like_debezium else 'refused:'} `{self.key}={self.value}`"


@dataclass(frozen=True, slots=True)
class Fails:
    """The native relay ends with an error that names this column, which a router's option has and the table has not."""

    option: str

    def __str__(self) -> str:
        return f"pass: both end where the column named by `{self.option}` is missing"


@dataclass(frozen=True, slots=True)
class Differs:
    """A difference that is meant; ``case`` of this suite shows it, side by side."""

    why: str
    case: str = ""

    def __str__(self) -> str:
        return f"differs: {self.why}" + (f" (measured: {self.case})" if self.case else "")


@dataclass(frozen=True, slots=True)
class Uncompared:
    """Neither by Debezium beside it nor by a test that is named."""

    why: str

    def __str__(self) -> str:
        return f"not compared: {self.why}"


@dataclass(frozen=True, slots=True)
class Ours:
    """What a test of ours holds the native relay to, without Debezium beside it."""

    file: str
    test: str

    def __str__(self) -> str:
        return f"pass, by our own test: {self.test.removeprefix('test_').replace('_', ' ')}"


Outcome = Same | Refused | Fails | Differs | Uncompared | Ours
