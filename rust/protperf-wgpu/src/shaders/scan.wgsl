// The running state: docs/algorithm.md, section 5.
//
//     n = max(n', n''),   S = 2^(n' - n) S' + 2^(n'' - n) S''
//
// Walks the tiles of a segment in order, in mode 1 from its end, and writes the state before each tile and the one
// after all. An invocation carries one column of one feature; its tiles are at most 65,535.

// states of tiles by themselves [lines, tiles, F, 1 + width]
@group(0) @binding(1) var<storage, read> own: array<f32>;
// states before the first tile [lines, segments, F, 1 + width]; with flag 0 there are none
@group(0) @binding(2) var<storage, read> first: array<f32>;
// first tile and number of tiles of each segment
@group(0) @binding(3) var<storage, read> segments: array<vec2u>;
// [lines, tiles, F, 1 + width]
@group(0) @binding(4) var<storage, read_write> before: array<f32>;
// [lines, segments, F, 1 + width]
@group(0) @binding(5) var<storage, read_write> last: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
    let at = invocation(group, local);
    if at >= sizes.invocations {
        return;
    }
    let row = sizes.width + 1u;
    let column = 1u + at % sizes.width;
    let feature = at / sizes.width % sizes.features;
    let state = at / sizes.width / sizes.features;
    let segment = segments[state % sizes.states];
    let first_tile = state / sizes.states * sizes.tiles + segment.x;
    let base = (state * sizes.features + feature) * row;
    var reference = EMPTY;
    var sum = 0.0;
    if sizes.flag == 1u {
        reference = reference_of(first[base]);
        sum = first[base + column];
    }
    for (var step = 0u; step < segment.y; step++) {
        let tile = first_tile + select(step, segment.y - 1u - step, sizes.mode == 1u);
        let to = (tile * sizes.features + feature) * row;
        before[to + column] = sum;
        if column == 1u {
            before[to] = stored_reference(reference);
        }
        let added = reference_of(own[to]);
        let top = max(reference, added);
        sum = sum * exp2_int(reference - top) + own[to + column] * exp2_int(added - top);
        reference = top;
    }
    last[base + column] = sum;
    if column == 1u {
        last[base] = stored_reference(reference);
    }
}
