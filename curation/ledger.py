"""What asking models has taken: tokens, cost, the budget that ends it, and how many requests may be under way at once.

All of it is shared by every process that asks from the same cache folder, by locks on files that fall when a process does.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout
from pydantic import BaseModel, Field, ValidationError

from animeshooter_dataset import DataError, Record, first_problem
from curation.script import NoAnswer

LOOK_AGAIN = 0.05
"""Seconds after which a process that waits for its turn looks again."""


@dataclass(frozen=True)
class AskLimits:
    """How a model is asked. None of it decides what is answered, so that none of it belongs to a fingerprint.

    Attributes:
        timeout: seconds after which a request is given up; up to twice that when its reply comes in drips.
        retries: how often a request is sent again when the server is busy, fails or cannot be reached.
        max_wait: longest wait in seconds that a server may ask for before it is given up.
        concurrency: requests under way at once to one address, over all processes that share the cache folder.
        prompt_price: price of a million tokens of question, in any currency.
        answer_price: the same of answer, reasoning included.
        budget_cost: no more requests once this model's cost in the cache folder has reached this; needs both prices.
        budget_tokens: the same in tokens of questions and answers together.
        device: where a local model runs, as torch names it (``cpu``, ``cuda:1``); ``auto`` takes a GPU where there is one.
        seed: of the jitter between retries.
    """

    timeout: float = 300.0
    retries: int = 4
    max_wait: float = 120.0
    concurrency: int = 4
    prompt_price: float | None = None
    answer_price: float | None = None
    budget_cost: float | None = None
    budget_tokens: int | None = None
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise :class:`DataError` where a setting cannot be used."""
        if self.budget_cost is not None and (self.prompt_price is None or self.answer_price is None):
            raise DataError(f"a budget of {self.budget_cost:g} needs prompt_price and answer_price")
        if min(self.timeout, self.concurrency) <= 0 or min(self.retries, self.max_wait) < 0:
            raise DataError("timeout and concurrency must be above 0, retries and max_wait at least 0")


class Usage(BaseModel):
    """Tokens of one or more requests; ``unreported`` counts those whose reply told none."""

    prompt_tokens: int = Field(default=0, ge=0)
    completion_tokens: int = Field(default=0, ge=0)
    total_tokens: int | None = None
    requests: int = 0
    unreported: int = 0

    def plus(self, other: Usage | None) -> Usage:
        """The sum with one more request; what its total holds beyond question and answer was spent on reasoning."""
        if other is None:
            return self.model_copy(update={"requests": self.requests + 1, "unreported": self.unreported + 1})
        answered = max(other.completion_tokens, (other.total_tokens or 0) - other.prompt_tokens)
        return self.model_copy(
            update={
                "requests": self.requests + 1,
                "prompt_tokens": self.prompt_tokens + other.prompt_tokens,
                "completion_tokens": self.completion_tokens + answered,
            }
        )


class BudgetReached(NoAnswer):
    """The budget is spent; what was answered is kept, and a run with a larger budget goes on from there."""


class Spent(Record):
    """What one model has taken so far; ``cost`` is at the prices of the latest request, None where none were named."""

    requests: int = Field(default=0, ge=0)
    unreported: int = Field(default=0, ge=0)
    prompt_tokens: int = Field(default=0, ge=0)
    completion_tokens: int = Field(default=0, ge=0)
    cost: float | None = None


class _Account(Record):
    format: Literal["animeshooter-usage"] = "animeshooter-usage"
    models: dict[str, Spent] = Field(default_factory=dict)


@dataclass(frozen=True)
class Ledger:
    """The account of a cache folder, ``usage.json``, shared by all processes that ask from it.

    It holds what replies report; a request whose reply never came whole may still have cost something.
    """

    path: Path
    model: str
    limits: AskLimits

    def spent(self) -> Spent:
        """What the model has taken, its cost at the configured prices.

        Raises:
            NoAnswer: the account is damaged.
        """
        return self._priced(self._read().models.get(self.model, Spent()))

    def check(self) -> None:
        """Stop before a request when a budget is reached, or cannot be kept because replies do not tell their tokens.

        Processes that ask at the same time may each go over it by the one request they have under way.

        Raises:
            BudgetReached: nothing more is to be sent.
        """
        limits, spent = self.limits, self.spent()
        if limits.budget_tokens is None and limits.budget_cost is None:
            return
        if spent.unreported:
            raise BudgetReached(
                f"{self.model} does not report its tokens ({spent.unreported} replies), so no budget can be kept; "
                f"ask without one, or delete {self.path}"
            )
        tokens = spent.prompt_tokens + spent.completion_tokens
        cost = "" if spent.cost is None else f", cost {spent.cost:.4g}"
        reached = ""
        if limits.budget_tokens is not None and tokens >= limits.budget_tokens:
            reached = f"{tokens} of {limits.budget_tokens} tokens{cost}"
        elif limits.budget_cost is not None and (spent.cost or 0) >= limits.budget_cost:
            reached = f"{tokens} tokens{cost} of {limits.budget_cost:g}"
        if reached:
            raise BudgetReached(
                f"budget reached: {self.model} has taken {reached} in {spent.requests} requests; its answers are kept: "
                f"raise the budget (or delete {self.path}) and run again to go on"
            )

    def add(self, usage: Usage | None) -> None:
        """Count one reply."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.path}.lock"):
            account = self._read()
            before = account.models.get(self.model, Spent())
            total = Usage(**before.model_dump(exclude={"cost"})).plus(usage)
            now = self._priced(Spent(**total.model_dump(exclude={"total_tokens"})))
            write_json(self.path, _Account(models=account.models | {self.model: now}).model_dump(mode="json"))

    def _read(self) -> _Account:
        try:
            return _Account.model_validate_json(self.path.read_bytes())
        except FileNotFoundError:
            return _Account()
        except ValidationError as error:
            raise NoAnswer(f"{self.path}: damaged ({first_problem(error)}); delete it to count anew") from None

    def _priced(self, spent: Spent) -> Spent:
        question, answer = self.limits.prompt_price, self.limits.answer_price
        if question is None or answer is None:
            return spent.model_copy(update={"cost": None})
        cost = (spent.prompt_tokens * question + spent.completion_tokens * answer) / 1e6
        return spent.model_copy(update={"cost": round(cost, 9)})


@contextmanager
def turn(folder: Path, count: int, sleep: Callable[[float], None] = time.sleep) -> Iterator[None]:
    """Wait until fewer than ``count`` holders are inside, over all processes that name the same folder, and be one of them.

    A holder that dies, whatever the way, leaves its place at once: the places are locks on files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    places = [FileLock(folder / f"{number}.lock") for number in range(count)]
    while True:
        for place in places:
            try:
                place.acquire(timeout=0)
            except Timeout:
                continue
            try:
                yield
            finally:
                place.release()
            return
        sleep(LOOK_AGAIN)


def write_json(path: Path, value: Any) -> None:
    """Write a file that is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(value, file, indent=1)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
