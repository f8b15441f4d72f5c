// What some heads read, side by side in rows. An invocation carries one number.

// [heads, rows, 1 + D]
@group(0) @binding(1) var<storage, read> heads: array<f32>;
// [rows, all heads D]
@group(0) @binding(2) var<storage, read_write> merged: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
    let at = invocation(group, local);
    if at >= extents.invocations {
        return;
    }
    let d = extents.head_dim;
    let axis = at % d;
    let head = at / d % extents.heads;
    let row = at / d / extents.heads;
    let found = heads[(head * extents.rows + row) * (d + 1u) + 1u + axis];
    merged[row * extents.outputs * 4u + (extents.first_head + head) * d + axis] = found;
}
