"""One check of a model against its PyTorch class, used by every test of such a pair.

Errors are max|a - b| / max(1, max|b|): both sides compute in float32 with sums in another order. 1e-5 holds for the
outputs of a few layers, 1e-4 for deep ones and for gradients, which add up over all positions.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax.convert.load import contents, dead, load
from alm_jax.convert.rules import Table
from alm_jax.convert.save import export
from alm_jax.core import tree
from tests.convert.dict_file import DictFile, same_bits

torch = pytest.importorskip("torch")
torch.set_num_threads(1)  # for sizes at which threads cost more than they give

SIMPLE, DEEP = 1e-5, 1e-4
_SEEN = 1e-3  # the least gradient by which a parameter shows in the outputs


def randomise(model: torch.nn.Module, std: float = 0.2) -> torch.nn.Module:
    """Weights large enough that every part of the model shows in the output; norms and running statistics move too."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(std * torch.randn(parameter.shape, generator=generator))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.add_(std * torch.randn(buffer.shape, generator=generator))
            elif name.endswith("running_var"):
                buffer.mul_(0.5 + torch.rand(buffer.shape, generator=generator))
    return model


def state(theirs: torch.nn.Module, prefix: str = "") -> dict[str, np.ndarray]:
    """A copy of the state dict, each key after `prefix`."""
    return {prefix + key: value.detach().numpy().copy() for key, value in theirs.state_dict().items()}


def build(module: type, config: Any, tensors: Mapping[str, np.ndarray], table: Table) -> Any:
    """Our model with the weights of `tensors`."""
    like = tree.abstract(lambda key: module(config, key))
    return tree.unflatten(like, load(tree.flatten(like), [(DictFile(tensors), table)]))


def error(ours: Any, theirs: Any) -> float:
    """max|a - b| / max(1, max|b|) of two arrays of one shape."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    if ours.shape != theirs.shape:
        raise AssertionError(f"ours has shape {ours.shape}, theirs {theirs.shape}")
    return float(np.abs(ours - theirs).max() / max(1.0, np.abs(theirs).max()))


def assert_close(ours: Any, theirs: Any, tolerance: float, what: str = "output") -> float:
    """The error, which must be at most `tolerance`."""
    found = error(ours, theirs)
    assert found <= tolerance, f"{what}: error {found:.2e}, expected at most {tolerance:.0e}"
    return found


def check_pair(
    record_property: Callable[[str, object], None],
    *,
    model: str,
    module: type,
    config: Any,
    table: Table,
    theirs: torch.nn.Module,
    ours_out: Callable[[Any], Any],
    theirs_out: Callable[[torch.nn.Module], Any],
    rebuilt: Callable[[], torch.nn.Module] | None = None,
    prefix: str = "",
    flat: Sequence[str] = (),
    tolerance: float = SIMPLE,
    gradient_tolerance: float = DEEP,
    std: float = 0.2,
) -> Any:
    """Random weights of a PyTorch module through our table and back.

    The weights are drawn and loaded; outputs agree; gradients of all parameters agree under PyTorch's names; the export
    has the keys and bits of the state dict (but for keys that the table ignores); PyTorch loads it with no missing and
    no unexpected key.

    Args:
        record_property: pytest's fixture; takes the record that the table of models is made from.
        model: the model's name in that table, e.g. `"Qwen2"`.
        module, config, table: ours.
        theirs: the PyTorch module; it is put into eval mode and gets new weights.
        ours_out, theirs_out: from the model to the outputs that are compared, one array or `{name: array}`, in float32.
        rebuilt: makes the PyTorch module anew from our `to_hf_config`: its outputs with our export must be the same as
            those of `theirs`. By default a copy of `theirs` is loaded.
        prefix: what stands before the state dict's keys in published files, where that differs.
        flat: patterns of keys (as in the state dict) whose gradient is zero by construction (a key bias under softmax).
        tolerance, gradient_tolerance: largest error (`error`).
        std: of the noise that is added to the weights.

    Returns:
        Our model.
    """
    theirs = randomise(theirs.eval().requires_grad_(True), std)
    tensors = state(theirs, prefix)
    ours = build(module, config, tensors, table)

    expected = _named(theirs_out(theirs))
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal(value.shape).astype(np.float32) for name, value in expected.items()}
    sum((value * torch.tensor(weights[name])).sum() for name, value in expected.items()).backward()
    outputs, gradients = _outputs_and_gradients(ours, ours_out, weights)
    errors = {name: assert_close(outputs[name], expected[name].detach(), tolerance, name) for name in expected}

    style = contents(tensors, table).style
    back = dict(export(gradients, table, style))
    largest = _check_gradients(back, theirs, prefix, table, flat, gradient_tolerance)
    _check_export(ours, tensors, table, theirs, prefix, expected, theirs_out, rebuilt)

    kind = type(theirs)
    library = kind.__module__.partition(".")[0]
    source = f"{library}.{kind.__name__}" if library in ("transformers", "peft") else f"{kind.__name__} (PyTorch)"
    record(record_property, model=model, source=source, errors=errors, gradient_error=largest)
    return ours


def record(
    record_property: Callable[[str, object], None],
    *,
    model: str,
    source: str,
    errors: Mapping[str, float],
    gradient_error: float | None = None,
    directions: Sequence[str] = ("in", "out"),
) -> None:
    """Keep the result of a check, as JSON under `parity` in the report of the tests (`pytest --junitxml`).

    Args:
        model: name of the model. source: class or recording that it was compared with.
        errors: `{output: error}`. gradient_error: the largest of all parameters; None if they were not compared.
        directions: `in` (read), `out` (written back).
    """
    content = {"model": model, "source": source, "directions": list(directions)}
    content |= {"errors": dict(errors), "gradient_error": gradient_error}
    record_property("parity", json.dumps(content))


def _named(outputs: Any) -> dict[str, Any]:
    return outputs if isinstance(outputs, dict) else {"output": outputs}


def _outputs_and_gradients(model: Any, out: Callable[[Any], Any], weights: Mapping[str, np.ndarray]):
    """Outputs, and `{path: gradient}` of their weighted sum for all floating-point leaves (zeros for the others)."""
    arrays = tree.flatten(model)
    whole = {path: leaf for path, leaf in arrays.items() if not jnp.issubdtype(leaf.dtype, jnp.floating)}

    def loss(floating):
        outputs = _named(out(tree.unflatten(model, floating | whole)))
        return sum((outputs[name] * weights[name]).sum() for name in weights), outputs

    floating = {path: leaf for path, leaf in arrays.items() if path not in whole}
    gradients, outputs = jax.jit(jax.grad(loss, has_aux=True))(floating)
    return outputs, gradients | {path: jnp.zeros_like(leaf) for path, leaf in whole.items()}


def _check_gradients(back, theirs, prefix, table, flat, tolerance) -> float:
    """The largest error of the gradients `back`, which have PyTorch's names."""
    parameters = {prefix + key: value for key, value in theirs.named_parameters(remove_duplicate=False)}
    found, largest = contents(parameters, table), 0.0
    mapped = set(found.mapped.values()) | set(found.tied.values())
    assert mapped <= set(back), f"without a gradient of ours: {sorted(mapped - set(back))}"
    for key in sorted(mapped):
        name, gradient = key.removeprefix(prefix), parameters[key].grad
        assert gradient is not None, f"{name} takes no part in the outputs of PyTorch's model"
        largest = max(largest, assert_close(back[key], gradient, tolerance, f"gradient of {name}"))
        seen = float(gradient.abs().max()) > _SEEN
        assert seen != tree.matches(name, flat), f"{name}: largest gradient {float(gradient.abs().max()):.1e}"
    return largest


def _check_export(ours, tensors, table, theirs, prefix, expected, theirs_out, rebuilt) -> None:
    found = contents(tensors, table)
    written = dict(export(tree.flatten(ours), table, found.style, dead(DictFile(tensors), table)))
    left = set(found.ignored.values())
    assert set(written) == set(tensors) - left, f"keys differ: {sorted(set(written) ^ (set(tensors) - left))}"
    assert same_bits(written, {key: tensors[key] for key in written}), "the export has other bits"

    fresh = rebuilt().eval() if rebuilt else copy.deepcopy(theirs)
    with torch.no_grad():
        for value in fresh.state_dict().values():
            value.zero_()
    values = {key.removeprefix(prefix): torch.tensor(value) for key, value in written.items()}
    result = fresh.load_state_dict(values, strict=not left)
    assert {prefix + key for key in result.missing_keys} == left and not result.unexpected_keys, result
    if not left:
        with torch.no_grad():
            again = _named(theirs_out(fresh))
        # the bits are equal; PyTorch's sums are not, whose order depends on how its buffers lie in memory
        for name, value in expected.items():
            assert_close(again[name], value.detach(), 1e-5, f"{name} of PyTorch's model with our export")
