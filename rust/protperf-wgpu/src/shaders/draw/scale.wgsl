// Rows of unit length, but for rounding, get their norms. An invocation works on a row.

// [M, D]
@group(0) @binding(1) var<storage, read_write> rotation: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
    let row = invocation(group, local);
    if row >= draw.invocations {
        return;
    }
    let d = draw.head_dim;
    var squares = 0.0;
    for (var axis = 0u; axis < d; axis++) {
        squares += rotation[row * d + axis] * rotation[row * d + axis];
    }
    var wanted = f32(d);
    if draw.is_chi == 1u {
        // After the normals of the block those of its norms, row by row.
        let block = row / d;
        let first = first_of(block) + (rows_of(block) + row % d) * d;
        wanted = 0.0;
        for (var axis = 0u; axis < d; axis++) {
            let x = normal(first + axis);
            wanted += x * x;
        }
    }
    let by = sqrt(wanted) / sqrt(squares);
    for (var axis = 0u; axis < d; axis++) {
        rotation[row * d + axis] *= by;
    }
}
