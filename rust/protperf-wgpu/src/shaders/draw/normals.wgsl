// Blocks of normals, row by row. An invocation draws a number.

// [M, D]
@group(0) @binding(1) var<storage, read_write> matrix: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
    let at = invocation(group, local);
    if at >= draw.invocations {
        return;
    }
    let of_block = draw.head_dim * draw.head_dim;
    matrix[at] = normal(first_of(at / of_block) + at % of_block);
}
