// One step of a QR decomposition of each block, whose rows are the columns that are decomposed: the reflection of row
// `step` is applied to the rows after it. An invocation works on a row.

// [M, D]
@group(0) @binding(1) var<storage, read_write> matrix: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
    let row = invocation(group, local);
    if row >= draw.invocations || row % draw.head_dim <= draw.step {
        return;
    }
    let d = draw.head_dim;
    let v = (row / d * d + draw.step) * d;
    var squares = 0.0;
    for (var axis = draw.step + 1u; axis < d; axis++) {
        squares += matrix[v + axis] * matrix[v + axis];
    }
    let reflection = reflection_of(matrix[v + draw.step], squares);
    let own = row * d;
    var along = reflection.first * matrix[own + draw.step];
    for (var axis = draw.step + 1u; axis < d; axis++) {
        along += matrix[v + axis] * matrix[own + axis];
    }
    let scale = reflection.beta * along;
    matrix[own + draw.step] -= scale * reflection.first;
    for (var axis = draw.step + 1u; axis < d; axis++) {
        matrix[own + axis] -= scale * matrix[v + axis];
    }
}
