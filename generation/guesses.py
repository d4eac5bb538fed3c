"""Guesses of the next tokens, which the model checks in one step: several tokens for one reading.

The model chooses at each place as ever, from the same probabilities and with the same random
numbers. A guess that it chooses saves a step, the first that it does not ends the step. So the text
is the same as without guesses, up to how sums over several rows are rounded.
"""

import time
from collections import deque
from collections.abc import Sequence
from statistics import fmean, median

NUM_KNOWN = 3  # tokens that were there before; what followed them then is the guess
MOST_GUESSES = 4  # of a row in one step
MOST_ROWS = 2  # with more, the model takes longer for their guesses than those that are right save
LATE_STEPS = 8  # whose speed counts, with guesses and without
NEW_TRIAL = 32  # steps after which guesses that did not pay are tried again


class Guesses:
    """What followed the same tokens the last time, in any of the rows, while that saves time."""

    def __init__(self, rows: Sequence[Sequence[int]]) -> None:
        self.followers: dict[tuple[int, ...], int] = {}
        self.late = {kind: deque(maxlen=LATE_STEPS) for kind in (False, True)}  # True: with guesses
        self.num_steps = 0
        for row in rows:
            self._remember(row, len(row))

    def of(self, rows: Sequence[Sequence[int]], most: int) -> list[list[int]]:
        """Tokens that may follow each row, none where its last ones are new. A step begins."""
        most = most if len(rows) <= MOST_ROWS and self.pay() else 0
        guessed = [self._chain(row, most) for row in rows]
        self.num_steps += 1
        self._start, self._is_guessed = time.perf_counter(), any(guessed)
        return guessed

    def learn(self, rows: Sequence[Sequence[int]], chosen: Sequence[Sequence[int]]) -> None:
        """Takes in what the rows now end with. The step is over."""
        for row, tokens in zip(rows, chosen, strict=True):
            self._remember(row, len(tokens))
        seconds = time.perf_counter() - self._start
        self.late[self._is_guessed].append((sum(map(len, chosen)) / len(chosen), seconds))

    def pay(self) -> bool:
        """Whether the next step is to have guesses; both kinds are tried first."""
        plain, guessed = (len(self.late[kind]) for kind in (False, True))
        if min(plain, guessed) < LATE_STEPS:
            return guessed < plain
        rates = []
        for steps in self.late.values():
            tokens, seconds = zip(*steps, strict=True)
            rates.append(fmean(tokens) / median(seconds))
        return rates[True] > rates[False] or self.num_steps % NEW_TRIAL == 0

    def _remember(self, row: Sequence[int], num_new: int) -> None:
        for end in range(max(NUM_KNOWN, len(row) - num_new), len(row)):
            self.followers[tuple(row[end - NUM_KNOWN : end])] = row[end]

    def _chain(self, row: Sequence[int], most: int) -> list[int]:
        tokens = list(row[-NUM_KNOWN:])
        while len(tokens) < NUM_KNOWN + most:
            follower = self.followers.get(tuple(tokens[-NUM_KNOWN:]))
            if follower is None:
                break
            tokens.append(follower)
        return tokens[NUM_KNOWN:]
