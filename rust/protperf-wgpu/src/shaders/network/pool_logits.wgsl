// Logits of the weights of rows: factor cos(x_i, x_query). An invocation makes that of one row.

// [rows, C]
@group(0) @binding(1) var<storage, read> x: array<vec4f>;
// [blocks]
@group(0) @binding(2) var<storage, read> blocks: array<Block>;
// [blocks, BLOCK]
@group(0) @binding(3) var<storage, read_write> logits: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
    let at = invocation(group, local);
    if at >= extents.invocations {
        return;
    }
    let block = blocks[at / BLOCK];
    if block.kind != ATTENTION || at % BLOCK >= block.count {
        return;
    }
    let row = (block.first + at % BLOCK) * extents.inputs;
    let query = block.query * extents.inputs;
    var dots = vec4f();
    var of_row = vec4f();
    var of_query = vec4f();
    for (var i = 0u; i < extents.inputs; i++) {
        let from_row = x[row + i];
        let from_query = x[query + i];
        dots += from_row * from_query;
        of_row += from_row * from_row;
        of_query += from_query * from_query;
    }
    let norms = sqrt(of_row.x + of_row.y + of_row.z + of_row.w) * sqrt(of_query.x + of_query.y + of_query.z + of_query.w);
    logits[at] = extents.factor * (dots.x + dots.y + dots.z + dots.w) / max(norms, 1e-30);
}
