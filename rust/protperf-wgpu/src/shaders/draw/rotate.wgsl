// One step, from the last on, of the rows of Q: row i is the reflections 0 to i on the i-th axis, and the sign of R's
// diagonal entry makes its distribution that of a rotation. An invocation works on a row.

// what the steps of `reflect` left [M, D]
@group(0) @binding(1) var<storage, read> matrix: array<f32>;
// [M, D]
@group(0) @binding(2) var<storage, read_write> rotation: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
    let row = invocation(group, local);
    let d = draw.head_dim;
    if row >= draw.invocations || row % d < draw.step {
        return;
    }
    let v = (row / d * d + draw.step) * d;
    var squares = 0.0;
    for (var axis = draw.step + 1u; axis < d; axis++) {
        squares += matrix[v + axis] * matrix[v + axis];
    }
    let reflection = reflection_of(matrix[v + draw.step], squares);
    let own = row * d;
    if row % d == draw.step {
        for (var axis = 0u; axis < d; axis++) {
            rotation[own + axis] = select(0.0, reflection.sign, axis == draw.step);
        }
    }
    var along = reflection.first * rotation[own + draw.step];
    for (var axis = draw.step + 1u; axis < d; axis++) {
        along += matrix[v + axis] * rotation[own + axis];
    }
    let scale = reflection.beta * along;
    rotation[own + draw.step] -= scale * reflection.first;
    for (var axis = draw.step + 1u; axis < d; axis++) {
        rotation[own + axis] -= scale * matrix[v + axis];
    }
}
