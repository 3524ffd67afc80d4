"""Statistics of compiled programs: counted by hand in a text, and in programs of known loops and collectives."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from train_jax.plan import hlo

TEXT = """HloModule jit_step, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%fused (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %twice = f32[8]{0} add(%p, %p), backend_config={"estimated_cycles":"7"}
}

%inner_body (x: (s32[], f32[8])) -> (s32[], f32[8]) {
  %x = (s32[], f32[8]{0}) parameter(0)
  %y = f32[8]{0} get-tuple-element(%x), index=1
  %reduced = f32[8]{0} all-reduce(%y), replica_groups={}, to_apply=%add, metadata={op_name="jit(step)/psum"}
  %fusion.1 = f32[8]{0:T(128)} fusion(%reduced), kind=kLoop, calls=%fused, backend_config={"estimated_cycles":"100"}
  ROOT %out = (s32[], f32[8]{0}) tuple(%y, %fusion.1)
}

%condition (x: (s32[], f32[8])) -> pred[] {
  %x = (s32[], f32[8]{0}) parameter(0)
  ROOT %less = pred[] constant(true)
}

%limit (x: (s32[], f32[8])) -> pred[] {
  %five = s32[]{:T(128)} constant(5)
  %x = (s32[], f32[8]{0}) parameter(0)
  %counter = s32[]{:T(128)} get-tuple-element(%x), index=0
  ROOT %less = pred[]{:T(512)} compare(%counter, %five), direction=LT
}

%outer_body (x: (s32[], f32[8])) -> (s32[], f32[8]) {
  %x = (s32[], f32[8]{0}) parameter(0)
  ROOT %loop = (s32[], f32[8]{0}) while(%x), condition=%condition, body=%inner_body, TRIPS={"n":"3"}}
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %start = (f32[8]{0}, bf16[64]{0}) all-gather-start(%p), dimensions={0}
  %done = bf16[64]{0} all-gather-done(%start)
  %gemm = (f32[8]{0}, s8[100]{0}) custom-call(%p), custom_call_target="__cublas$gemm", metadata={op_name="jit(step)/dot"}
  %mark = f32[8]{0} custom-call(%p), custom_call_target="Sharding"
  %loops = (s32[], f32[8]{0}) while(%p), condition=%limit, body=%outer_body
  ROOT %fusion.2 = f32[8]{0} fusion(%p), calls=%fused, metadata={op_name="jit(step)/end"}, CYCLES"40"}
}
"""


def test_a_program_by_hand():
    text = TEXT.replace("TRIPS=", 'backend_config={"known_trip_count":')
    text = text.replace("CYCLES", 'backend_config={"estimated_cycles":')
    instructions = hlo.parse(text)
    assert hlo.total_cycles(instructions) == 5 * 3 * 100 + 40
    assert hlo.most_expensive(instructions, 5) == [("fusion.1", 1500), ("jit(step)/end", 40)]
    assert hlo.kernels(instructions) == {"__cublas$gemm": 1}
    assert hlo.collectives(instructions) == [
        hlo.Collective("all-reduce", True, 15, 15 * 32),
        hlo.Collective("all-gather", False, 1, 128),
    ]
    assert [x.size for x in instructions if x.name == "gemm"] == [132]
    assert hlo.unknown_loops(text) == 0 and hlo.unknown_loops(text.replace("constant(5)", "parameter(1)")) == 1
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.parse("HloModule empty")


BRANCHES = """HloModule jit_step

%short (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %a = f32[8]{0} add(%p, %p), backend_config={"estimated_cycles":"30"}
}

%long (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %b = f32[8]{0} add(%p, %p), backend_config={"estimated_cycles":"50"}
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %chosen = f32[8]{0} conditional(%p, %p, %p), branch_computations={%short, %long}
}
"""


def test_branches_count_as_equally_frequent():
    assert hlo.total_cycles(hlo.parse(BRANCHES)) == 40


def test_a_time_that_the_compiler_does_not_know_does_not_count():
    text = BRANCHES.replace('"50"', f'"{2**63 - 1}"')
    assert hlo.total_cycles(hlo.parse(text)) == 15


SCHEDULED = """HloModule jit_step, is_scheduled=true

%part.1 (p: f32[8]) -> f32[64] {
  %p = f32[8]{0} parameter(0)
  ROOT %gathered.1 = f32[64]{0} all-gather(%p), channel_id=7, dimensions={0}
}

%part.2 (p: f32[8]) -> f32[64] {
  %p = f32[8]{0} parameter(0)
  %product = f32[8]{0} multiply(%p, %p)
  ROOT %gathered.2 = f32[64]{0} all-gather(%p), channel_id=7, dimensions={0}
}

%part.3 (p: f32[8]) -> f32[64] {
  %p = f32[8]{0} parameter(0)
  ROOT %gathered.3 = f32[64]{0} all-gather(%p), channel_id=7, dimensions={0}
}

%alone (p: f32[8]) -> f32[32] {
  %p = f32[8]{0} parameter(0)
  ROOT %gathered.4 = f32[32]{0} all-gather(%p), channel_id=8, dimensions={0}
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %start.1 = f32[16]{0} all-reduce-start(%p), channel_id=1
  %between = f32[8]{0} fusion(%p), kind=kLoop, calls=%alone
  %done.1 = f32[16]{0} all-reduce-done(%start.1)
  %start.2 = f32[16]{0} all-reduce-start(%p), channel_id=2
  %name = f32[8]{0} get-tuple-element(%between), index=0
  %done.2 = f32[16]{0} all-reduce-done(%start.2)
  %first = f32[64]{0} fusion(%p), kind=kCustom, calls=%part.1
  %second = f32[64]{0} fusion(%p), kind=kCustom, calls=%part.2
  ROOT %third = f32[64]{0} fusion(%p), kind=kCustom, calls=%part.3
}
"""


def test_collectives_beside_computation():
    """Two all-reduces, one of them hidden; an all-gather in three fusions, one of which computes, and one in one fusion."""
    assert hlo.collectives(hlo.parse(SCHEDULED)) == [
        hlo.Collective("all-gather", False, 2, 4 * (64 + 32), 1),
        hlo.Collective("all-reduce", False, 2, 2 * 64, 1),
    ]


@pytest.mark.parametrize(
    "shape, opcode, size",
    [
        ("(bf16[1024,1024]{1,0}, bf16[1024,1024]{1,0}, u32[]{:S(2)}, u32[]{:S(2)})", "collective-permute-start", 2 << 20),
        ("(f32[8]{0}, f32[8]{0})", "collective-permute-start", 32),
        ("((f32[8]{0}, bf16[4]{0}), (f32[64]{0}, bf16[32]{0}))", "all-gather-start", 4 * 64 + 2 * 32),
        ("(f32[], f32[8]{0})", "all-gather-start", 32),
        ("(f32[8]{0}, f32[4]{0})", "all-reduce-start", 48),
        ("(f32[8]{0}, f32[4]{0}, f32[], f32[2]{0})", "all-reduce-start", 32 + 16 + 4 + 8),
        ("(f32[8]{0}, f32[4]{0})", "all-reduce", 48),
    ],
)
def test_bytes_of_asynchronous_starts_are_those_of_their_results(shape, opcode, size):
    """An all-reduce has the shape of its results; the others have operands, results and, on TPUs, scalar contexts."""
    assert hlo.Instruction("x", opcode, shape, "", 1.0, False, False).size == size


def test_collectives_of_compiled_loops():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    def program(x):
        def turn(x, _):
            return jax.lax.ppermute(jnp.sin(x), "data", [(i, (i + 1) % 8) for i in range(8)]), None

        x, _ = jax.lax.scan(turn, x, None, length=5)
        return x + jax.lax.psum(jnp.cos(x), "data")

    x = jax.ShapeDtypeStruct((16, 3), jnp.float32, sharding=NamedSharding(mesh, P("data")))
    rows = hlo.collectives(hlo.parse(jax.jit(program).lower(x).compile().as_text()))
    shard = 2 * 3 * 4
    assert rows == [
        hlo.Collective("collective-permute", True, 5, 5 * shard),
        hlo.Collective("all-reduce", False, 1, shard),
    ]
