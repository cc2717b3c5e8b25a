"""What a circuit of one task is worth: scores of the circuit literature, and gates that were fixed beforehand."""

from mechint.circuits.study import CircuitStudy

__all__ = ["CircuitStudy"]
