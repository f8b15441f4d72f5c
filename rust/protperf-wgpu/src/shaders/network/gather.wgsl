// Some rows of two arrays, the same for every outer index. An invocation carries one number.

// [outer, rows of the first, width]
@group(0) @binding(1) var<storage, read> first: array<f32>;
// [outer, rows of the second, width]
@group(0) @binding(2) var<storage, read> second: array<f32>;
// rows of the first array, and then of the second [rows]
@group(0) @binding(3) var<storage, read> table: array<u32>;
// [outer, rows, width]
@group(0) @binding(4) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
    let at = invocation(group, local);
    if at >= extents.invocations {
        return;
    }
    let column = at % extents.width;
    let row = table[at / extents.width % extents.rows];
    let outer_index = at / extents.width / extents.rows;
    if row < extents.inputs {
        out[at] = first[(outer_index * extents.inputs + row) * extents.width + column];
    } else {
        out[at] = second[(outer_index * extents.outputs + row - extents.inputs) * extents.width + column];
    }
}
