// Rows over their root mean square: y = x / sqrt(mean x^2 + epsilon) * gain. An invocation makes one row.

// [rows, C]
@group(0) @binding(1) var<storage, read> x: array<vec4f>;
// [C]
@group(0) @binding(2) var<storage, read> gain: array<vec4f>;
// [rows, C]
@group(0) @binding(3) var<storage, read_write> y: array<vec4f>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
    let row = invocation(group, local);
    if row >= extents.invocations {
        return;
    }
    let base = row * extents.inputs;
    var squares = vec4f();
    for (var i = 0u; i < extents.inputs; i++) {
        squares += x[base + i] * x[base + i];
    }
    let mean = (squares.x + squares.y + squares.z + squares.w) / f32(extents.width);
    let by = 1.0 / sqrt(mean + extents.factor);
    for (var i = 0u; i < extents.inputs; i++) {
        y[base + i] = x[base + i] * by * gain[i];
    }
}
