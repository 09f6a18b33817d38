"""A budget: how much of something a tier may hold. Pure arithmetic, no tensors."""

from dataclasses import dataclass


class OverBudget(ValueError):
    """More was taken than the budget allows; whoever took it did not ask ``fits`` first."""


@dataclass
class Budget:
    """``limit`` units (bytes, or slots) of which ``used`` are taken; ``0 <= used <= limit`` always."""

    limit: int
    used: int = 0

    def __post_init__(self) -> None:
        if self.limit < 0:
            raise ValueError(f"a budget cannot be negative: {self.limit}")

    @property
    def free(self) -> int:
        """Units that are still to be had."""
        return self.limit - self.used

    def fits(self, amount: int) -> bool:
        """Return whether ``amount`` more can be taken."""
        return amount <= self.free

    def take(self, amount: int) -> None:
        """Take ``amount``; ``OverBudget`` when it does not fit."""
        if not self.fits(amount):
            raise OverBudget(f"{amount} wanted, {self.free} of {self.limit} free")
        self.used += amount

    def give_back(self, amount: int) -> None:
        """Return ``amount`` that was taken before."""
        if amount > self.used:
            raise OverBudget(f"{amount} given back, but only {self.used} were taken")
        self.used -= amount
