// Rows [1, v] of a tensor of values as those of batch heads, v over the power of two of its row, and zeros where a row
// is left out. An invocation carries a number. BH: batch entries times heads, those of one group.

// [B, Hk, S, E]
@group(0) @binding(1) var<storage, read> words: array<u32>;
// [BH, S]
@group(0) @binding(2) var<storage, read> shifts: array<i32>;
// [BH, S]
@group(0) @binding(3) var<storage, read> powers: array<i32>;
// [BH, S, 1 + E]
@group(0) @binding(4) var<storage, read_write> values: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
    let at = invocation(group, local);
    if at >= shape.invocations {
        return;
    }
    let column = at % (shape.value_dim + 1u);
    let place = at / (shape.value_dim + 1u);
    if shifts[place] == LEFT_OUT {
        values[at] = 0.0;
        return;
    }
    if column == 0u {
        values[at] = 1.0;
        return;
    }
    let row = place % shape.rows;
    let batch_head = place / shape.rows;
    let number = (key_batch_head(batch_head) * shape.rows + row) * shape.value_dim + column - 1u;
    values[at] = over_power(bits_in(words[word_of(number)], number), powers[place]);
}
