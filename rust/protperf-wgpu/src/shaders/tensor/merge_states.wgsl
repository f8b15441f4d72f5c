// The state of the keys of two states. An invocation computes a number.

// [.., F, 2 + E]
@group(0) @binding(1) var<storage, read> of_a: array<u32>;
@group(0) @binding(2) var<storage, read> of_b: array<u32>;
@group(0) @binding(3) var<storage, read_write> words: array<u32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
    let at = invocation(group, local);
    if at >= shape.invocations {
        return;
    }
    let row = at - at % (shape.value_dim + 2u);
    // A reference that is not finite belongs to a row of nothing else, and makes one.
    if !(is_finite(of_a[row]) && is_finite(of_b[row]) && is_finite(of_a[at]) && is_finite(of_b[at])) {
        words[at] = nan_bits(FLOAT32);
        return;
    }
    let references = vec2f(bitcast<f32>(of_a[row]), bitcast<f32>(of_b[row]));
    let top = max(references.x, references.y);
    if at == row {
        words[at] = bitcast<u32>(top);
        return;
    }
    // Below -125 both are 0, as on the host.
    let shifts = vec2i(max(references - top, vec2f(-200.0)));
    // Half of each where the sum may be beyond the largest number; that is exact there.
    let is_huge = max(of_a[at] & 0x7fffffffu, of_b[at] & 0x7fffffffu) >= 0x7e800000u;
    let by = select(1.0, 0.5, is_huge);
    let sum = bitcast<f32>(of_a[at]) * by * exp2_int(shifts.x) + bitcast<f32>(of_b[at]) * by * exp2_int(shifts.y);
    words[at] = stored_bits(sum, select(0, 1, is_huge), FLOAT32, false);
}
