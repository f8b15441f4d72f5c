// Fours of inputs that fit into 16 KB of workgroup memory with what they are multiplied with, for 64 rows times 64 columns.
const DEPTH = 8u;
