// States after the last keys as a tensor, NaN where something was not finite. An invocation carries a number.
// BH: batch entries times heads, those of one group.

// [BH, segments, F, 2 + E]
@group(0) @binding(1) var<storage, read> states: array<f32>;
// [BH, segments, 2]
@group(0) @binding(2) var<storage, read> facts: array<u32>;
// [B, H, F, 2 + E], or [segments, H, F, 2 + E]
@group(0) @binding(3) var<storage, read_write> words: array<u32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
    let at = invocation(group, local);
    if at >= shape.invocations {
        return;
    }
    let width = shape.value_dim + 2u;
    let column = at % width;
    let state = at / width / shape.features;
    let to = state_row(state, at / width % shape.features) + column;
    if facts[state * 2u] != 0u {
        words[to] = nan_bits(FLOAT32);
        return;
    }
    let power = select(0, power_of(facts[state * 2u + 1u]), column >= 2u);
    words[to] = stored_bits(states[at], power, FLOAT32, false);
}
