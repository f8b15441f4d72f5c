// Products with a matrix: out_n = W x_n, in mode 1 added to what is there. An invocation makes 4 rows times 4 columns.

// [rows, I]
@group(0) @binding(1) var<storage, read> x: array<vec4f>;
// transposed [I, O]
@group(0) @binding(2) var<storage, read> weights: array<vec4f>;
// [rows, O]
@group(0) @binding(3) var<storage, read_write> out: array<vec4f>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
    let at = invocation(group, local);
    if at >= extents.invocations {
        return;
    }
    let columns = extents.outputs;
    let column = at % columns;
    let first_row = at / columns * 4u;
    let row = min(vec4u(first_row) + vec4u(0u, 1u, 2u, 3u), vec4u(extents.rows - 1u)) * extents.inputs;
    var sums = mat4x4f();
    for (var i = 0u; i < extents.inputs; i++) {
        let x0 = x[row.x + i];
        let x1 = x[row.y + i];
        let x2 = x[row.z + i];
        let x3 = x[row.w + i];
        let w = i * 4u * columns + column;
        sums += outer(vec4f(x0.x, x1.x, x2.x, x3.x), weights[w]);
        sums += outer(vec4f(x0.y, x1.y, x2.y, x3.y), weights[w + columns]);
        sums += outer(vec4f(x0.z, x1.z, x2.z, x3.z), weights[w + 2u * columns]);
        sums += outer(vec4f(x0.w, x1.w, x2.w, x3.w), weights[w + 3u * columns]);
    }
    for (var i = 0u; i < min(4u, extents.rows - first_row); i++) {
        let to = (first_row + i) * columns + column;
        out[to] = select(sums[i], out[to] + sums[i], extents.mode == 1u);
    }
}
