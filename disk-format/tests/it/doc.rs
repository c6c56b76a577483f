//! docs/on-disk-format.md says what the code does.

use disk_format::layout;

#[test]
fn the_documentation_holds_the_tables_of_the_code() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/on-disk-format.md");
    let doc = std::fs::read_to_string(path).unwrap();
    let tables = [
        ("sizes", layout::render_sizes()),
        ("header", layout::render(layout::header::ALL)),
        ("page", layout::render(layout::page::ALL)),
        ("record", layout::render(layout::record::ALL)),
        ("volume", layout::render(layout::volume::ALL)),
        ("run", layout::render(layout::run::ALL)),
    ];
    for (name, table) in tables {
        let want = format!("```text {name}\n{table}```\n");
        assert!(doc.contains(&want), "docs/on-disk-format.md differs from the code; it should hold:\n{want}");
    }
}
