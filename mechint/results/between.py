"""What circuits of one model share, and what the circuit of one task does on another."""

from __future__ import annotations

from mechint.results.section import Section


class CircuitOf(Section):
    """One of the circuits that are compared: its run, what that was measured on, and how many units it keeps."""

    directory: str
    data: str | None = None
    ablation: str | None = None
    kept: int = 0
    total: int = 0


class SharedChannels(Section):
    """What two masks share, in channels; of directions in one basis likewise.

    iou: channels that both keep, over those that either keeps; chance: its expectation for random masks with the same
    counts in every layer, kind and KV head. Both are None where neither keeps anything. shared: how many both keep.
    """

    first: str
    second: str
    shared: int = 0
    iou: float | None = None
    chance: float | None = None


class Transfer(Section):
    """The mask of one run on the evaluation data of another, under the latter's ablation.

    faithfulness: of the logit difference, of the loss where the data are running text. kl: from the dense model, in
    nats. Intervals: 95 %, by the bootstrap over sequences.
    """

    mask: str
    data: str
    faithfulness: float | None = None
    interval: list[float] | None = None
    kl: float | None = None
    kl_interval: list[float] | None = None


class Between(Section):
    """Several circuits of one checkpoint, by name."""

    runs: dict[str, CircuitOf]
    overlap: list[SharedChannels]
    transfer: list[Transfer]

    def shared(self, first: str, second: str) -> SharedChannels | None:
        """What two circuits share, in either order; None for one circuit and itself."""
        return next((one for one in self.overlap if {one.first, one.second} == {first, second}), None)

    def on(self, mask: str, data: str) -> Transfer:
        """One run's mask on another run's data."""
        return next(one for one in self.transfer if (one.mask, one.data) == (mask, data))

    def faithfulness(self, mask: str, data: str) -> float | None:
        """Of one run's mask on another run's data."""
        return self.on(mask, data).faithfulness
