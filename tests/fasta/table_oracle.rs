//! The reader of tables that anyone would write with the whole input in memory: rows first, then records.

use protperf_core::fasta::{Columns, ResiduePolicy};

use super::oracle::{Item, naive_header, naive_record};

type Place = (usize, usize);

struct Field {
    place: Place,
    text: Vec<u8>,
    is_quoted: bool,
    is_faulty: bool,
}

struct Row {
    line: usize,
    fields: Vec<Field>,
}

/// Records of a table, or the place of its first fault.
pub fn naive_table(data: &[u8], policy: ResiduePolicy, columns: &Columns) -> Vec<Item> {
    let rows = rows_of(data.strip_prefix(b"\xef\xbb\xbf").unwrap_or(data));
    let Some((names, rows)) = rows.split_first() else {
        return if data.is_empty() { Vec::new() } else { vec![Item::Error { line: 1, column: 1 }] };
    };
    if let Some(fault) = fault_of(names) {
        return vec![fault];
    }
    let places = |name: &str| -> Vec<usize> {
        (0..names.fields.len()).filter(|&index| names.fields[index].text == name.as_bytes()).collect()
    };
    let id = match &columns.id {
        Some(name) => places(name),
        None if columns.sequence == "id" => Vec::new(),
        None => places("id"),
    };
    if places(&columns.sequence).len() != 1 || id.len() > 1 || (columns.id.is_some() && id.is_empty()) {
        return vec![Item::Error { line: names.line as u64, column: 1 }];
    }
    let (sequence, id) = (places(&columns.sequence)[0], id.first().copied());
    let mut items = Vec::new();
    for (ordinal, row) in (0..).zip(rows) {
        if let Some(fault) = fault_of(row) {
            items.push(fault);
            return items;
        }
        if row.fields.len() != names.fields.len() {
            items.push(Item::Error { line: row.line as u64, column: 1 });
            return items;
        }
        let header = id.map(|index| &row.fields[index]);
        match record_of(row.line, header, &row.fields[sequence], ordinal, policy) {
            Ok(item) => items.push(item),
            Err((line, column)) => {
                let (line, column) = (line as u64, column as u64);
                if policy != ResiduePolicy::Skip {
                    items.push(Item::Error { line, column });
                    return items;
                }
                items.push(Item::Rejected { ordinal, line, column });
            }
        }
    }
    items
}

fn fault_of(row: &Row) -> Option<Item> {
    let field = row.fields.iter().find(|field| field.is_faulty)?;
    Some(Item::Error { line: field.place.0 as u64, column: field.place.1 as u64 })
}

fn record_of(
    line: usize,
    id: Option<&Field>,
    sequence: &Field,
    ordinal: u64,
    policy: ResiduePolicy,
) -> Result<Item, Place> {
    let (header, header_flags) = match id {
        None => (ordinal.to_string(), 0),
        Some(field) => {
            let (line, column) = inside(field);
            naive_header(&field.text, policy).map_err(|at| (line, column + at))?
        }
    };
    let (first, column) = inside(sequence);
    let word = String::from_utf8_lossy(&sequence.text).to_lowercase();
    let word = word.trim_matches([' ', '\t', '\n', '\r', '\x0c']);
    if ["na", "nan", "none", "null"].contains(&word.strip_prefix('-').unwrap_or(word)) {
        return Err((first, column));
    }
    // Spaces have no effect, so they take the place of what is before the cell in its line.
    let text: String = sequence.text.iter().map(|&byte| byte as char).collect();
    let text = " ".repeat(column - 1) + &text.replace("\r\n", "\n").replace('\r', "\n");
    let lines: Vec<(usize, String)> = (first..).zip(text.split('\n').map(String::from)).collect();
    let (letters, flags) = naive_record(line, &lines, policy)?;
    Ok(Item::Record { ordinal, header, letters, flags: flags | header_flags })
}

/// Where the text of a field starts.
fn inside(field: &Field) -> Place {
    (field.place.0, field.place.1 + usize::from(field.is_quoted))
}

fn rows_of(data: &[u8]) -> Vec<Row> {
    let is_end = |byte: u8| matches!(byte, b'\n' | b'\r');
    let first_line = data.split(|&byte| is_end(byte)).find(|line| !line.is_empty()).unwrap_or_default();
    let separator = *[b'\t', b','].iter().find(|byte| first_line.contains(byte)).unwrap_or(&b';');
    let place = |at: usize| {
        let ends = |&at: &usize| data[at] == b'\n' || (data[at] == b'\r' && data.get(at + 1) != Some(&b'\n'));
        // Between a CR and its LF the line has ended.
        let is_split = at > 0 && data[at - 1] == b'\r' && data.get(at) == Some(&b'\n');
        let line = 1 + (0..at).filter(ends).count() + usize::from(is_split);
        let start = (0..at).rev().find(|&at| is_end(data[at])).map_or(0, |at| at + 1);
        (line, at - start + 1)
    };
    let (mut rows, mut at) = (Vec::new(), 0);
    while at < data.len() {
        if is_end(data[at]) {
            at += 1;
            continue;
        }
        let mut row = Row { line: place(at).0, fields: Vec::new() };
        loop {
            let (field, next) = field_at(data, at, separator, place(at));
            row.fields.push(field);
            at = next;
            if data.get(at) != Some(&separator) {
                break;
            }
            at += 1;
        }
        rows.push(row);
    }
    rows
}

/// The field that starts here, and the index of the separator or line end after it.
fn field_at(data: &[u8], start: usize, separator: u8, place: Place) -> (Field, usize) {
    let is_over = |at: usize| at >= data.len() || data[at] == separator || matches!(data[at], b'\n' | b'\r');
    let mut field = Field { place, text: Vec::new(), is_quoted: data.get(start) == Some(&b'"'), is_faulty: false };
    let mut at = start + usize::from(field.is_quoted);
    while field.is_quoted {
        match (data.get(at), data.get(at + 1)) {
            (None, _) => {
                field.is_faulty = true;
                return (field, at);
            }
            (Some(b'"'), Some(b'"')) => {
                field.text.push(b'"');
                at += 2;
            }
            (Some(b'"'), _) => {
                at += 1;
                field.is_faulty = !is_over(at);
                break;
            }
            (Some(&byte), _) => {
                field.text.push(byte);
                at += 1;
            }
        }
    }
    while !is_over(at) {
        field.text.push(data[at]);
        at += 1;
    }
    (field, at)
}
