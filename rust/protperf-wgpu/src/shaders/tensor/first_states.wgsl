// States before the first keys as the scan takes them, their sums of values over the power of two of the first key, or
// over their own where there is none. A row that is not finite is that of an empty state. An invocation carries the row of
// a feature. BH: batch entries times heads, those of one group.

// [B, H, F, 2 + E], or [segments, H, F, 2 + E]
@group(0) @binding(1) var<storage, read> words: array<u32>;
// [BH, segments, 2]
@group(0) @binding(2) var<storage, read> facts: array<u32>;
// [num_segments + 1]
@group(0) @binding(3) var<storage, read> borders: array<u32>;
// [BH, S]
@group(0) @binding(4) var<storage, read> powers: array<i32>;
// [BH, segments, F, 2 + E]
@group(0) @binding(5) var<storage, read_write> states: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
    let at = invocation(group, local);
    if at >= shape.invocations {
        return;
    }
    let width = shape.value_dim + 2u;
    let state = at / shape.features;
    let base = state_row(state, at % shape.features);
    var bad = false;
    for (var column = 0u; column < width; column++) {
        bad = bad || !is_finite(words[base + column]);
    }
    let segment = state % shape.segments;
    var power = power_of(facts[state * 2u + 1u]);
    if borders[segment] < borders[segment + 1u] {
        power = powers[state / shape.segments * shape.rows + borders[segment]];
    }
    states[at * width] = select(bitcast<f32>(select(words[base], 0u, bad)), EMPTY_REFERENCE, bad);
    for (var column = 1u; column < width; column++) {
        let bits = select(words[base + column], 0u, bad);
        states[at * width + column] = over_power(bits, select(0, power, column >= 2u));
    }
}
