//! The table writer and the rates.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use crate::cli::{
    connections,
    output::Screen,
    table::{Cell, Table, Tint},
    watch::{Rates, frame, placed},
};

proptest! {
    #[test]
    fn lines_fit_when_they_can(
        cells in proptest::collection::vec(("\\PC{0,30}", "\\PC{0,30}", 0..1_000_000_u64), 0..6),
        width in 40..200_usize,
    ) {
        let mut table = Table::new().text("NAME").text("REASON").spare(1).number("N");
        for (a, b, n) in &cells {
            table.row(vec![a.as_str().into(), b.as_str().into(), n.to_string().into()]);
        }
        let text = table.render(Some(width), false);
        prop_assert_eq!(text.lines().count(), cells.len() + 1);
        for line in text.lines() {
            prop_assert!(line.chars().count() <= width, "{} > {width}: {line:?}", line.chars().count());
        }
        let whole = table.render(None, false);
        prop_assert!(!whole.contains('…') || cells.iter().any(|(a, b, _)| a.contains('…') || b.contains('…')));
    }
}

#[test]
fn colour_does_not_move_columns_and_is_off_when_told() {
    let mut table = Table::new().text("STATE").text("NAME");
    table.row(vec![Cell::tinted("ok", Some(Tint::Good)), "a".into()]);
    assert_eq!(table.render(None, false), "STATE  NAME\nok     a\n");
    assert_eq!(
        table.render(None, true),
        "STATE  NAME\n\u{1b}[32mok\u{1b}[0m     a\n"
    );
}

#[test]
fn names_cannot_drive_the_terminal() {
    let mut table = Table::new().text("NAME");
    table.row(vec!["a\u{1b}[2Jb\n".into()]);
    let text = table.render(None, true);
    assert!(!text.contains('\u{1b}'), "{text:?}");
    assert_eq!(text.lines().count(), 2);
}

#[test]
fn rates_are_bytes_a_second_and_sort_the_rows() {
    let mut rows = super::connections();
    let start = Instant::now();
    let mut rates = Rates::default();
    let (_, first) = rates.measure(rows.clone(), start);
    assert_eq!(first, [(0, 0); 3], "nothing is known at first sight");
    rows[1].bytes_sent += 4_000;
    rows[2].bytes_received += 10_000;
    let (sorted, moved) = rates.measure(rows.clone(), start + Duration::from_secs(2));
    assert_eq!(moved, [(0, 5_000), (2_000, 0), (0, 0)]);
    assert_eq!(sorted[0].original_dst, rows[2].original_dst);
}

#[test]
fn a_frame_fits_the_terminal() {
    let rows: Vec<_> = (0..50).flat_map(|_| super::connections()).collect();
    let rates = vec![(1, 1); rows.len()];
    let screen = Screen {
        terminal: true,
        colour: false,
        width: Some(80),
        height: Some(10),
    };
    let text = placed(&frame(&rows, &rates, false, &screen), &screen);
    assert!(text.starts_with("\u{1b}[H"));
    assert!(text.split("\r\n").count() <= 10);
    assert!(text.contains("more"), "says that some are not shown");
    let table = connections::table(&rows, false, Some(&rates));
    assert_eq!(table.render(None, false).lines().count(), rows.len() + 1);
}
