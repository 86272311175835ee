"""How near two results are, and how near each method is to its paper: the bounds, stated in one place."""

from torch import Tensor

__all__ = ["BOUNDS", "FOUND", "hold", "relative_difference"]

# Largest relative difference allowed in float32, where one rounding is 6e-8: 2e-6 over one layer, 5e-6 over a decoder
# of two, 1e-5 where a network makes its weights. What is found is printed after the tests.
BOUNDS = {
    "decoder": 5e-6,
    "LoRA": 2e-6,
    "rsLoRA": 2e-6,
    "DoRA": 2e-6,
    "IA3": 5e-6,
    "prefix": 5e-6,
    "bottleneck": 5e-6,
    "BitFit": 5e-6,
    "our bottleneck": 5e-6,
    "our BitFit": 5e-6,
    "our hypernetwork": 1e-5,
    "NF4 levels": 1e-6,
    "8-bit levels": 1e-6,
    "NF4": 0.0,
    "double quantization": 1e-6,
}

# Largest relative difference of each method in the comparisons that passed.
FOUND: dict[str, float] = {}


def relative_difference(ours: Tensor, reference: Tensor) -> float:
    """Largest difference of two tensors, as a fraction of the reference's largest value.

    Raises:
        AssertionError: the shapes differ, a number is not finite, or the reference is zero, where nothing is relative.
    """
    assert ours.shape == reference.shape, f"{tuple(ours.shape)} against {tuple(reference.shape)}"
    ours, reference = ours.detach().double(), reference.detach().double()
    assert ours.isfinite().all(), "a number that is not finite"
    assert reference.abs().max() > 0, "the reference is zero: the comparison would say nothing"
    return ((ours - reference).abs().max() / reference.abs().max()).item()


def hold(method: str, **pairs: tuple[Tensor, Tensor]) -> None:
    """Hold results to a reference: each pair is (ours, reference), and its name says what it is.

    Raises:
        AssertionError: a pair differs by more than the method's bound.
    """
    differences = {}
    for name, (ours, reference) in pairs.items():
        try:
            differences[name] = relative_difference(ours, reference)
        except AssertionError as error:
            raise AssertionError(f"{method}, {name}: {error}") from error
    far = {name: f"{value:.1e}" for name, value in differences.items() if not value <= BOUNDS[method]}
    assert not far, f"{method} is further from its paper than {BOUNDS[method]:.0e}: {far}"
    FOUND[method] = max([FOUND.get(method, 0.0), *differences.values()])
