"""Where the time of a step goes: profiles made up by hand. A real one is made by the script."""

import pytest

from flexdraft_jax.models.scopes import StepPart
from flexdraft_jax.parallel.devices import Device
from flexdraft_jax.planning.hlo import read_program
from flexdraft_jax.planning.roofline import Part, StepWork
from flexdraft_jax.planning.step_trace import (
    Event,
    Operation,
    Place,
    StepTrace,
    find_places,
    operations_table,
    parts_table,
    read_events,
    shared_time,
    summarise,
)

_PROGRAM = """HloModule jit_run, is_scheduled=true

%fused (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %e.1 = f32[8]{0} exponential(%p), metadata={op_name="jit(run)/while/body/drafts/lm_head/exp"}
}

%body (carry: (f32[8])) -> (f32[8]) {
  %carry = (f32[8]{0}) parameter(0)
  %element = f32[8]{0} get-tuple-element(%carry), index=0
  %copy.7 = f32[8]{0} copy(%element)
  %dot.1 = f32[8]{0} dot(%copy.7, %copy.7), metadata={op_name="jit(run)/draft_layers/layers_6/mlp/dot_general"}
  %dot.2 = f32[8]{0} dot(%dot.1, %dot.1), metadata={op_name="jit(run)/draft_layers/layers_7/mlp/dot_general"}
  %reduce-window.3 = f32[8]{0} reduce-window(%dot.2), metadata={op_name="reduce_sum"}
  %fusion.4 = f32[8]{0} fusion(%reduce-window.3), kind=kLoop, calls=%fused
  %inner = f32[8]{0} call(%fusion.4), to_apply=%fused, metadata={op_name="jit(run)/drafts/call"}
  ROOT %add = f32[8]{0} add(%inner, %inner), metadata={op_name="jit(run)/while/body/add"}
}

%goes_on (carry: (f32[8])) -> pred[] {
  %carry.1 = (f32[8]{0}) parameter(0)
  ROOT %yes = pred[] constant(true)
}

ENTRY %main (x: f32[8]) -> (f32[8]) {
  %x = f32[8]{0} parameter(0)
  %before = f32[8]{0} negate(%x)
  ROOT %while.1 = (f32[8]{0}) while(%before), condition=%goes_on, body=%body
}
"""  # noqa: E501


def test_operations_that_overlap_share_their_time() -> None:
    events = [Event("a", 0, 10), Event("b", 4, 6), Event("a", 20, 21), Event("c", 30, 30)]
    assert shared_time(events) == {"a": 10.0, "b": 1.0}


def test_instructions_belong_to_the_innermost_scope() -> None:
    places = find_places(read_program(_PROGRAM))
    assert (
        places["dot.1"] == places["dot.2"] == Place(StepPart.DRAFT_LAYERS, "layers/mlp/dot_general")
    )
    # What the compiler has made belongs where it takes its input from, a fusion where its root is.
    assert places["reduce-window.3"] == Place(StepPart.DRAFT_LAYERS, "reduce-window")
    assert places["fusion.4"] == Place(StepPart.LM_HEAD, "exp")
    assert places["copy.7"] == Place(None, "copy")
    assert places["add"] == Place(None, "body/add")
    # Neither what only runs others, nor what lies outside of the loop.
    assert not {"inner", "while.1", "before"} & places.keys()


def test_seconds_are_those_of_one_step() -> None:
    events = [Event("before", 0, 1000), Event("while.1", 1000, 5000)]
    for start in (1000, 3000):
        events += [Event("dot.1", start, start + 500), Event("dot.2", start + 500, start + 800)]
        events.append(Event("fusion.4", start + 900, start + 1000))
    seconds, operations = summarise(read_program(_PROGRAM), events)
    assert seconds == pytest.approx(1.5e-6)  # From 1000 to 4000, in two steps.
    assert [(o.place.part, o.times) for o in operations] == [
        (StepPart.DRAFT_LAYERS, 2),
        (StepPart.LM_HEAD, 1),
    ]
    assert [o.seconds for o in operations] == pytest.approx([0.8e-6, 0.1e-6])


def test_a_profile_that_says_nothing_is_named(tmp_path) -> None:
    with pytest.raises(ValueError, match="the profiler has written no"):
        read_events(tmp_path, "jit_run")
    (tmp_path / "a.xplane.pb").touch()
    with pytest.raises(ValueError, match="a.xplane.pb: the profiler names no operation"):
        read_events(tmp_path, "jit_run")


def test_tables_say_shares_and_how_well_the_device_is_used() -> None:
    operations = (
        Operation(Place(StepPart.DRAFT_LAYERS, "mlp"), 8, 0.004),
        Operation(Place(StepPart.MASKS, "select"), 8, 0.003),
        Operation(Place(None, "copy"), 1, 0.001),
    )
    work = {StepPart.DRAFT_LAYERS: StepWork((Part(flops=2e9, traffic=1e8),), ())}
    trace = StepTrace(0.009, 0.010, operations, work)
    table = parts_table(trace, Device(flops=1e12, bandwidth=1e11), "A step")
    assert list(table.rows) == [
        ("draft layers", "4.000", "40 %", "500.0", "50 %", "25.0", "25 %"),
        ("masks", "3.000", "30 %", "-", "-", "-", "-"),
        ("other operations", "1.000", "10 %", "-", "-", "-", "-"),
        ("between operations", "2.000", "20 %", "-", "-", "-", "-"),
        ("step", "10.000", "100 %", "200.0", "20 %", "10.0", "10 %"),
    ]
    assert "9.000 ms" in table.note
    assert list(operations_table(trace, "Longest", number=2).rows) == [
        ("mlp", "draft layers", "8", "4.000", "40 %"),
        ("select", "masks", "8", "3.000", "30 %"),
    ]
