// What is known of states before the first keys. An invocation reads the row of a feature.
// BH: batch entries times heads, those of one group.

// [B, H, F, 2 + E], or [segments, H, F, 2 + E]
@group(0) @binding(1) var<storage, read> words: array<u32>;
// [BH, segments, 2]
@group(0) @binding(2) var<storage, read_write> facts: array<atomic<u32>>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
    let at = invocation(group, local);
    if at >= shape.invocations {
        return;
    }
    let state = at / shape.features;
    let base = state_row(state, at % shape.features);
    var bad = false;
    var largest = 0u;
    for (var column = 0u; column < shape.value_dim + 2u; column++) {
        let bits = words[base + column];
        bad = bad || !is_finite(bits);
        largest = max(largest, select(0u, bits & 0x7fffffffu, column >= 2u));
    }
    if bad {
        // All queries see a state: as if the very first key were not finite.
        atomicMax(&facts[state * 2u], NO_KEY);
    } else {
        atomicMax(&facts[state * 2u + 1u], largest);
    }
}
