"""Norms and gated MLPs that keep less: against the libraries' own forward to the bit, and in bytes."""

import ast
import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import Gemma2Config, LlamaConfig, Phi3Config
from transformers.models.gemma2.modeling_gemma2 import Gemma2MLP, Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm
from transformers.models.phi3.modeling_phi3 import Phi3MLP

from finetune.model.adapters import attach_adapter
from finetune.model.base import load_base
from finetune.model.lean import use_lean_path
from finetune.model.lean_elementwise import FUSED_MLPS, GATED_MLPS, NORMS, use_lean_elementwise
from finetune.model.recomputation import Keeps, Recomputation, SavedBytes
from finetune.recipe.schema import AdapterSettings, ModelSettings
from tests.end_to_end.small_runs import read_lines, read_weights, run_small
from tests.model.tiny_models import SHAPE

EPSILON = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}
DTYPES = list(EPSILON)
FIELDS = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 1}
RANK = 8
IDS = torch.arange(48).reshape(2, 24)

# ---- the table

LLAMA_NORM = """
def forward(self, hidden_states):
    input_dtype = hidden_states.dtype
    hidden_states = hidden_states.to(torch.float32)
    variance = hidden_states.pow(2).mean(-1, keepdim=True)
    hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)
    return self.weight * hidden_states.to(input_dtype)
"""
OLMO_NORM = LLAMA_NORM.replace(
    "self.weight * hidden_states.to(input_dtype)", "(self.weight * hidden_states).to(input_dtype)"
)
GEMMA_NORM = """
def _norm(self, x):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
def forward(self, x):
    output = self._norm(x.float())
    output = output * (1.0 + self.weight.float())
    return output.type_as(x)
"""
GATED = """
def forward(self, x):
    down_proj = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
    return down_proj
"""
FUSED = """
def forward(self, hidden_states):
    up_states = self.gate_up_proj(hidden_states)
    gate, up_states = up_states.chunk(2, dim=-1)
    up_states = up_states * self.activation_fn(gate)
    return self.down_proj(up_states)
"""
ASSUMED = {name: OLMO_NORM if "olmo" in name else GEMMA_NORM if "gemma" in name else LLAMA_NORM for name in NORMS}
ASSUMED |= dict.fromkeys(GATED_MLPS, GATED) | dict.fromkeys(FUSED_MLPS, FUSED)


@pytest.mark.parametrize("name", sorted(ASSUMED))
def test_a_class_of_the_table_still_computes_what_the_table_says(name):
    module, _, kind = name.rpartition(".")
    path = Path(transformers.__file__).parent.joinpath("models", *module.split(".")).with_suffix(".py")
    [found] = [one for one in ast.parse(path.read_text()).body if isinstance(one, ast.ClassDef) and one.name == kind]
    written = [one for one in found.body if isinstance(one, ast.FunctionDef) and one.name in ("_norm", "forward")]
    for one in written:  # the numbers do not hang on annotations
        one.returns = None
        for argument in one.args.args:
            argument.annotation = None
    assert [ast.unparse(one) for one in written] == [ast.unparse(one) for one in ast.parse(ASSUMED[name]).body]


# ---- one module


@dataclass(frozen=True)
class Passed:
    """What came of one forward and backward pass."""

    out: Tensor
    grad_x: Tensor
    node: str


def make_lean(module: nn.Module) -> nn.Module:
    """The same module, a copy, served."""
    twin = nn.Sequential(copy.deepcopy(module))
    assert use_lean_elementwise(twin) == 1
    return twin[0]


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def run(module: nn.Module, x: Tensor) -> Passed:
    given = x.clone().requires_grad_()
    out = module(given)
    out.backward(draw(*out.shape).to(out.dtype))
    return Passed(out.detach(), given.grad, out.grad_fn.name())


def build_norm(kind: type[nn.Module], dtype: torch.dtype) -> nn.Module:
    norm = kind(16, eps=1e-6)
    nn.init.normal_(norm.weight)
    return norm.to(dtype).requires_grad_(False)


def build_mlp(kind: type[nn.Module], config: Any, dtype: torch.dtype) -> nn.Module:
    """Build a frozen MLP."""
    torch.manual_seed(0)
    return kind(config).to(dtype).requires_grad_(False)


def to_exact(norm: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """A norm's result and its input's gradient in float64."""
    factor = norm.weight.double() + (1 if type(norm) is Gemma2RMSNorm else 0)
    given = x.double().requires_grad_()
    out = given / (given.square().mean(-1, keepdim=True) + 1e-6).sqrt() * factor
    out.backward(draw(*out.shape).to(x.dtype).double())
    return out.detach(), given.grad


@pytest.mark.parametrize("kind", [LlamaRMSNorm, Olmo2RMSNorm, Gemma2RMSNorm])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 5, 16), (2, 3, 5, 16), (7, 16)])
def test_a_norm_is_the_librarys_to_the_bit_and_so_is_its_gradient(kind, dtype, shape):
    norm, x = build_norm(kind, dtype), 3 * draw(*shape).to(dtype)
    ours, theirs = run(make_lean(norm), x), run(norm, x)
    assert ours.node != theirs.node
    assert torch.equal(ours.out, theirs.out)
    assert torch.equal(ours.grad_x, theirs.grad_x)
    for mine, exact in zip((ours.out, ours.grad_x), to_exact(norm, x), strict=True):
        assert (mine.double() - exact).norm() <= EPSILON[dtype] * exact.norm()


@pytest.mark.parametrize("kind", [LlamaRMSNorm, Gemma2RMSNorm])
@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)])
def test_a_norm_in_another_dtype_than_its_input_gives_what_the_librarys_gives(kind, dtypes):
    norm, x = build_norm(kind, dtypes[0]), draw(2, 5, 16).to(dtypes[1])
    ours, theirs = run(make_lean(norm), x), run(norm, x)
    assert ours.out.dtype == theirs.out.dtype
    assert torch.equal(ours.out, theirs.out)
    assert torch.equal(ours.grad_x, theirs.grad_x)


MLPS: dict[str, tuple[type[nn.Module], Any]] = {
    "silu": (LlamaMLP, LlamaConfig(**FIELDS)),
    "swish": (LlamaMLP, LlamaConfig(**FIELDS, hidden_act="swish")),
    "gelu with tanh": (Gemma2MLP, Gemma2Config(**FIELDS)),
    "fused": (Phi3MLP, Phi3Config(**FIELDS, pad_token_id=0)),
}


@pytest.mark.parametrize("which", MLPS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gated_mlp_is_the_librarys_to_the_bit_and_so_is_its_gradient(which, dtype):
    mlp, x = build_mlp(*MLPS[which], dtype), draw(2, 5, 16).to(dtype)
    ours, theirs = run(make_lean(mlp), x), run(mlp, x)
    assert torch.equal(ours.out, theirs.out)
    assert torch.equal(ours.grad_x, theirs.grad_x)
    # Ten tokens of 24 features: gate and up, and by the library silu(gate) too; a frozen down_proj keeps no product.
    assert (count_saved(make_lean(mlp), x), count_saved(mlp, x)) == (2 * 240, 3 * 240)


def count_saved(module: nn.Module, x: Tensor) -> int:
    """Numbers that a call saves, each tensor once, parameters left out."""
    weights = {one.untyped_storage().data_ptr() for one in module.parameters()}
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes() // tensor.itemsize
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = module(x.clone().requires_grad_())
    assert out.requires_grad
    return sum(saved.values())


# ---- whatever is not the usual case


def call_by_keyword(norm: nn.Module, x: Tensor) -> Tensor:
    return norm(hidden_states=x)


def train_weight(norm: nn.Module, x: Tensor) -> Tensor:
    norm.weight.requires_grad_()
    return norm(x)


def pretend_to_compile(norm: nn.Module, x: Tensor) -> Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        return norm(x)


NORM_CASES: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "a trained weight": train_weight,
    "a keyword": call_by_keyword,
    "no gradient": lambda norm, x: torch.no_grad()(norm)(x),
    "an input without one": lambda norm, x: norm(x.detach()),
    "float64": lambda norm, x: norm(x.double()),
    "no rows": lambda norm, x: norm(x[:0]),
    "compiled": pretend_to_compile,
    "vmap": lambda norm, x: torch.func.vmap(norm)(x),
    "jvp": lambda norm, x: torch.func.jvp(norm, (x,), (torch.ones_like(x),))[1],
    "grad of torch.func": lambda norm, x: torch.func.grad(lambda given: norm(given).square().sum())(x),
}


# torch writes a few formulas of jvp in TorchScript still.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("case", NORM_CASES)
def test_any_other_call_of_a_norm_is_the_librarys(case):
    norm, x = build_norm(LlamaRMSNorm, torch.float32), draw(3, 16).requires_grad_()
    ours, theirs = (NORM_CASES[case](one, x) for one in (make_lean(norm), norm))
    assert torch.equal(ours, theirs)
    assert ours.grad_fn is None or "RootMeanSquare" not in ours.grad_fn.name()


MLP_CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "a hook on the activation": lambda mlp: mlp.act_fn.register_forward_hook(lambda *_: None),
    "a forward put over the activation's": lambda mlp: setattr(mlp.act_fn, "forward", mlp.act_fn.forward),
    "another activation": lambda mlp: setattr(mlp, "act_fn", nn.ReLU()),
    "gelu in Python": lambda mlp: setattr(mlp, "act_fn", transformers.activations.GELUTanh(True)),
}


@pytest.mark.parametrize("change", MLP_CHANGES)
def test_an_mlp_with_another_activation_or_one_that_is_watched_is_the_librarys(change):
    mlp, x = build_mlp(*MLPS["silu"], torch.float32), draw(2, 5, 16)
    MLP_CHANGES[change](mlp)
    lean = make_lean(mlp)
    ours, theirs = run(lean, x), run(mlp, x)
    assert torch.equal(ours.out, theirs.out)
    assert torch.equal(ours.grad_x, theirs.grad_x)
    assert count_saved(lean, x) == count_saved(mlp, x)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_vmap_and_jvp_go_through_an_mlp():
    mlp, x = build_mlp(*MLPS["silu"], torch.float32), draw(2, 5, 16)
    for transform in (torch.func.vmap, lambda one: lambda x: torch.func.jvp(one, (x,), (x,))[1]):
        assert torch.equal(transform(make_lean(mlp))(x), transform(mlp)(x))


def test_a_class_that_is_none_of_the_table_keeps_its_forward():
    class Own(LlamaRMSNorm):
        pass

    assert use_lean_elementwise(nn.Sequential(Own(16), nn.RMSNorm(16), nn.LayerNorm(16))) == 0


def test_serving_a_model_twice_changes_nothing_more_and_its_names_stay():
    model = nn.ModuleDict({"norm": LlamaRMSNorm(16), "mlp": build_mlp(*MLPS["silu"], torch.float32)})
    names = list(model.state_dict())
    assert use_lean_elementwise(model) == use_lean_elementwise(model) == 2
    assert list(copy.deepcopy(model).state_dict()) == names
    assert isinstance(model["norm"], LlamaRMSNorm)


# ---- whole models


def build(*, elementwise: bool, dtype: str = "bfloat16", **fields: object) -> nn.Module:
    """Build a tiny Mistral in NF4 with LoRA on every linear, all matrices drawn."""
    shape = SHAPE | {"num_hidden_layers": 4, "vocab_size": 100}
    settings = {"weights": "random", "config": shape, "device": "cpu", "quantization": "nf4", "compute_dtype": dtype}
    base = load_base(ModelSettings(**settings), seed=1)
    base.model.config.use_cache = False
    adapter = AdapterSettings(method="lora", **{"r": RANK, "lora_dropout": 0.0} | fields)
    model = attach_adapter(base, adapter, seed=3).train()
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.02)
    model.enable_input_require_grads()
    assert use_lean_path(model) > 0
    assert not elementwise or use_lean_elementwise(model) == 3 * 4 + 1
    return model


@dataclass(frozen=True)
class Step:
    """What one step came to."""

    loss: float
    grads: dict[str, Tensor]
    saved: SavedBytes

    def equals(self, other: "Step") -> bool:
        same = all(torch.equal(one, other.grads[name]) for name, one in self.grads.items())
        return self.loss == other.loss and self.grads.keys() == other.grads.keys() and same


def step(model: nn.Module, recomputation: Recomputation | None = None, *, autocast: bool = True) -> Step:
    model.zero_grad()
    torch.manual_seed(1)
    with (recomputation or Recomputation(model)).counting() as passes:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
    grads = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
    return Step(loss.item(), grads, passes[0])


@pytest.mark.parametrize("fields", [{}, {"lora_dropout": 0.5}, {"target_modules": ["q_proj", "down_proj"]}], ids=str)
def test_no_bit_of_a_step_in_16_bits_is_another_and_fewer_bytes_are_saved(fields):
    ours, theirs = (step(build(elementwise=elementwise, **fields)) for elementwise in (True, False))
    assert ours.equals(theirs)
    assert ours.saved.total < 0.9 * theirs.saved.total


def test_in_float32_the_sum_of_three_gradients_alone_is_rounded_in_another_order():
    ours, theirs = (step(build(elementwise=one, dtype="float32"), autocast=False) for one in (True, False))
    assert ours.loss == theirs.loss
    for name, mine in ours.grads.items():
        torch.testing.assert_close(mine, theirs.grads[name], rtol=1e-4, atol=1e-6)


def test_the_bytes_of_a_kept_layer_are_those_of_the_formula():
    ours, theirs = (step(build(elementwise=one)).saved for one in (True, False))
    d, f, heads, width = SHAPE["hidden_size"], SHAPE["intermediate_size"], 4, 16
    k = SHAPE["num_key_value_heads"] * width
    # Behind both norms and LoRA's seven inner products; q, k, v, what was attended to, and its rows' sums.
    same = 2 * 2 * d + 7 * 2 * RANK + 2 * (2 * d + 2 * k) + 4 * heads
    # A's and B's casts, of no token.
    casts = 2 * RANK * ((d + d) + 2 * (d + k) + (d + d) + 3 * (d + f))
    # Both norms' roots; the stream between attention and MLP; gate and up. The stream into the layer is its input's.
    assert ours.layers[1] == IDS.numel() * (same + 2 * 4 + 2 * d + 2 * 2 * f) + casts
    assert ours.input_bytes == IDS.numel() * 2 * d
    # Both norms' roots; their inputs in float32; gate, silu, up and product.
    assert theirs.layers[1] == IDS.numel() * (same + 2 * 4 + 2 * 4 * d + 4 * 2 * f) + casts
    # Recomputed alone, the MLP saves nothing of these but its input.
    assert ours.mlp[1] == IDS.numel() * (2 * 2 * f + 3 * 2 * RANK) + 2 * RANK * 3 * (d + f)


@pytest.fixture(scope="module")
def served() -> tuple[nn.Module, Recomputation, Step]:
    """A model, its recomputation, and a step of it with nothing recomputed."""
    model = build(elementwise=True)
    recomputation = Recomputation(model)
    return model, recomputation, step(model, recomputation)


MIXED: list[Keeps] = ["nothing", "attention", "mlp", "all"]


@pytest.mark.parametrize("keeps", [["nothing"] * 4, ["attention"] * 4, ["mlp"] * 4, MIXED], ids="-".join)
def test_no_bit_of_a_step_hangs_on_what_layers_keep(served, keeps):
    model, recomputation, kept = served
    recomputation.follow(keeps)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert step(model, recomputation).equals(kept)


def test_nor_on_the_reentrant_mode(served):
    model, recomputation, kept = served
    recomputation.follow(["nothing", "nothing", "all", "all"])
    model.gradient_checkpointing_enable({"use_reentrant": True})
    assert step(model, recomputation).equals(kept)


def test_a_product_that_a_hook_writes_into_is_kept_as_it_was_read():
    def write(_: nn.Module, args: tuple[Tensor]) -> None:
        args[0].detach().mul_(2)

    steps = []
    for elementwise in (True, False):
        model = build(elementwise=elementwise)
        plain = step(model)
        for layer in model.base_model.model.model.layers:
            layer.mlp.down_proj.register_forward_pre_hook(write)
        steps.append(step(model))
        assert steps[-1].loss != plain.loss
    assert steps[0].equals(steps[1])


@pytest.mark.slow
def test_a_run_is_the_same_to_the_bit_with_and_without(tmp_path, monkeypatch):
    fields = {"model__compute_dtype": "bfloat16", "adapter__lora_dropout": 0.0}
    fields |= {"training__max_steps": 2, "data__train__limit": 12}
    ours = run_small(tmp_path / "lean", **fields)
    monkeypatch.setattr("finetune.train.use_lean_elementwise", lambda model: 0)
    theirs = run_small(tmp_path / "plain", **fields)
    losses = [[line["loss"] for line in read_lines(one) if "loss" in line] for one in (ours, theirs)]
    assert len(losses[0]) == 2
    assert losses[0] == losses[1]
    assert read_weights(ours) == read_weights(theirs)
