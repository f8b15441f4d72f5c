
// The segment of a row: the last one that begins at it or before.
fn segment_of(row: u32) -> u32 {
    var low = 0u;
    var high = shape.segments;
    while high - low > 1u {
        let middle = (low + high) / 2u;
        if borders[middle] <= row {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}
