
// The power of two that the values of a row were divided by, 0 where all are as they were; a shader that asks binds
// `powers` [BH, rows], BH batch entries times heads. Along a batch head that is read causally they only grow, so a
// power that a later row has never lowers what an earlier one reads.
fn power_at(row: u32) -> i32 {
    if sizes.powers == 0u {
        return 0;
    }
    return powers[row];
}
