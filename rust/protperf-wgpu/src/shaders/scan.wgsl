// The running state: docs/algorithm.md, section 5.
//
//     n = max(n', n''),   S = 2^(n' - n) S' + 2^(n'' - n) S''
//
// Walks the tiles of a segment in order, in mode 1 from its end, and writes the state before each tile and the one
// after all. Sums of values are over powers of two: those of the first state over that of the first row, those of a tile
// alone over that of its last row, those before a tile over that of its first row, and the last over that of the last row.
// An invocation carries one column of one feature; its tiles are at most 65,535.
// BH: batch entries times heads, those of one group.

// states of tiles by themselves [BH, tiles, F, 1 + width]
@group(0) @binding(1) var<storage, read> own: array<f32>;
// states before the first tile [BH, segments, F, 1 + width]; with flag 0 there are none
@group(0) @binding(2) var<storage, read> first: array<f32>;
// first tile and number of tiles of each segment
@group(0) @binding(3) var<storage, read> segments: array<vec2u>;
// [tiles]
@group(0) @binding(4) var<storage, read> tiles: array<Tile>;
// of values [BH, rows]; with powers 0 there are none
@group(0) @binding(5) var<storage, read> powers: array<i32>;
// [BH, tiles, F, 1 + width]
@group(0) @binding(6) var<storage, read_write> before: array<f32>;
// [BH, segments, F, 1 + width]
@group(0) @binding(7) var<storage, read_write> last: array<f32>;

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
    let batch_head = state / sizes.states;
    let has_power = sizes.powers == 1u && column > 1u;
    let base = (state * sizes.features + feature) * row;
    var reference = EMPTY;
    var sum = 0.0;
    if sizes.flag == 1u {
        reference = reference_of(first[base]);
        sum = first[base + column];
    }
    // That of `sum`.
    var power = 0;
    for (var step = 0u; step < segment.y; step++) {
        let at_tile = segment.x + select(step, segment.y - 1u - step, sizes.mode == 1u);
        let to = ((batch_head * sizes.tiles + at_tile) * sizes.features + feature) * row;
        var by_tile = 1.0;
        if has_power {
            let first_row = batch_head * sizes.rows + tiles[at_tile].first;
            let low = powers[first_row];
            let high = powers[first_row + tiles[at_tile].count - 1u];
            sum *= exp2_int(select(power - low, 0, step == 0u));
            by_tile = exp2_int(low - high);
            power = high;
        }
        before[to + column] = sum;
        if column == 1u {
            before[to] = stored_reference(reference);
        }
        let added = reference_of(own[to]);
        let top = max(reference, added);
        sum = sum * by_tile * exp2_int(reference - top) + own[to + column] * exp2_int(added - top);
        reference = top;
    }
    last[base + column] = sum;
    if column == 1u {
        last[base] = stored_reference(reference);
    }
}
