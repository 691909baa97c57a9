"""Reading optimised programs, on lines as libtpu writes them."""

from flexdraft_jax.planning.hlo import Array, read_program

_TEXT = """\
HloModule jit_run, is_scheduled=true, input_output_alias={ {0}: (1, {}, may-alias), {2}: (4, {}, may-alias) }, entry_computation_layout={()->()}

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[]{:T(128)} parameter(0)
  ROOT %sum = f32[]{:T(128)} add(%x, %x)
}

%below (p: s32[]) -> pred[] {
  %limit = s32[]{:T(128)} constant(3)
  %round = s32[]{:T(128)} parameter(0)
  ROOT %less = pred[]{:T(512)} compare(%round, %limit), direction=LT
}

%chain (p: bf16[4,8]) -> bf16[32,8] {
  %p.5 = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.2 = bf16[32,8]{1,0:T(8,128)(2,1)} all-gather(%p.5), channel_id=7, replica_groups=[2,8]<=[16], dimensions={0}
}

%fused (p: f32[8,16]) -> f32[8,16] {
  %p = f32[8,16]{1,0:T(8,128)} parameter(0)
  ROOT %wide = f32[8,151936]{1,0:T(8,128)} broadcast(%p), dimensions={0,1}
}

%chunk (p: bf16[4,8]) -> bf16[32,8] {
  %p.1 = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.1 = bf16[32,8]{1,0:T(8,128)(2,1)} all-gather(%p.1), channel_id=7, replica_groups=[2,8]<=[16], dimensions={0}
}

%joined_below (p: (bf16[4,8], s32[])) -> pred[] {
  %end = s32[]{:T(128)} constant(5)
  %pair = (bf16[4,8]{1,0}, s32[]) parameter(0)
  %counter = s32[]{:T(128)} get-tuple-element(%pair), index=1
  ROOT %fewer = pred[]{:T(512)} compare(%counter, %end), direction=LT
}

%joined (p: (bf16[4,8], s32[])) -> (bf16[4,8], s32[]) {
  %two = s32[]{:T(128)} constant(2)
  %pair.1 = (bf16[4,8]{1,0}, s32[]) parameter(0)
  %counter.1 = s32[]{:T(128)} get-tuple-element(%pair.1), index=1
  %next = s32[]{:T(128)} add(%counter.1, %two)
  %part = bf16[4,8]{1,0} get-tuple-element(%pair.1), index=0
  %sent = (bf16[4,8]{1,0}, bf16[4,8]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%part), channel_id=9, source_target_pairs={{0,1},{1,0}}
  %came = bf16[4,8]{1,0} collective-permute-done(%sent)
  ROOT %again = (bf16[4,8]{1,0}, /*index=1*/s32[]) tuple(%came, %next)
}

%few (p: bf16[4,8]) -> bf16[4,8] {
  %p.2 = bf16[4,8]{1,0} parameter(0)
  ROOT %all-reduce.2 = bf16[4,8]{1,0} all-reduce(%p.2), replica_groups={{0,1},{2,3}}, to_apply=%add
}

%many (p: bf16[4,8]) -> bf16[4,8] {
  %p.3 = bf16[4,8]{1,0} parameter(0)
  %permuted = (bf16[4,8]{1,0:S(1)}, bf16[4,8]{1,0:S(1)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%p.3), source_target_pairs={{0,1},{1,0}}
  ROOT %all-reduce.3 = bf16[4,8]{1,0} all-reduce(%p.3), replica_groups=mesh['a'=4,'b'=2] {'a','b'}, to_apply=%add
}

%body (carry: (bf16[4,8], s32[])) -> (bf16[4,8], s32[]) {
  %carry = (bf16[4,8]{1,0}, /*index=1*/s32[]) parameter(0)
  %chosen = bf16[4,8]{1,0} conditional(%carry, %carry, %carry), branch_computations={%few, %many}
  %chunks = bf16[32,8]{1,0} while(%carry), condition=%below, body=%chunk
  %pairs = (bf16[4,8]{1,0}, s32[]) while(%carry), condition=%joined_below, body=%joined
  %beside = bf16[32,8]{1,0} fusion(%carry), kind=kCustom, calls=%chain
  %to_fast = (bf16[4,8]{1,0:T(8,128)S(1)}, bf16[4,8]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%chosen)
  %copy.1 = bf16[4,8]{1,0:T(8,128)} copy(%chosen)
  ROOT %both = (bf16[4,8]{1,0}, s32[]) tuple(%copy.1, %carry)
}

ENTRY %main (p: bf16[4,8]) -> bf16[4,8] {
  %p.4 = bf16[4,8]{1,0} parameter(0), sharding={devices=[8,1]<=[8]}
  %logits = f32[8,17]{1,0} fusion(%p.4), kind=kLoop, calls=%fused
  %loop = (bf16[4,8]{1,0}, s32[]) while(%p.4), condition=%add, body=%body
  ROOT %out = bf16[4,8]{1,0} get-tuple-element(%loop), index=0
}
"""  # noqa: E501


def test_collectives_are_counted_as_often_as_they_run() -> None:
    found = read_program(_TEXT).collectives()
    # Of the two branches, the one that sends more.
    assert [(c.kind, c.nbytes, c.group, c.times, c.in_loop) for c in found] == [
        ("collective-permute", 64, 1, 1, True),
        ("all-reduce", 64, 8, 1, True),
        ("all-gather", 512, 8, 3, True),
        # Two rounds in one: up to 5 by 2.
        ("collective-permute", 64, 1, 3, True),
    ]
    assert [c.sent for c in found] == [64, 2 * 64 * 7 / 8, 512 * 7 / 8, 64]


def test_copies_to_fast_memory_are_none() -> None:
    program = read_program(_TEXT)
    assert [copy.name for copy in program.copies(64)] == ["copy.1"]
    assert not program.copies(65)


def test_arrays_within_fusions_are_in_no_memory() -> None:
    program = read_program(_TEXT)
    assert [i.name for i in program.buffers(lambda array: array.nbytes > 128)] == [
        "all-gather.1",
        "beside",
        "logits",
    ]
    assert Array("f32", (8, 16)).nbytes == 512
