//! A table that fits the terminal: columns that matter least go first, then long cells are cut.

/// Colours of the terminal's own palette.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tint {
    Good,
    Warn,
    Bad,
    Faint,
}

impl Tint {
    const fn code(self) -> &'static str {
        match self {
            Self::Good => "32",
            Self::Warn => "33",
            Self::Bad => "31",
            Self::Faint => "2",
        }
    }

    pub(super) fn paint(self, text: &str, colour: bool) -> String {
        if colour {
            format!("\x1b[{}m{text}\x1b[0m", self.code())
        } else {
            text.to_owned()
        }
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct Cell {
    text: String,
    tint: Option<Tint>,
}

impl Cell {
    pub(super) fn tinted(text: impl Into<String>, tint: Option<Tint>) -> Self {
        Self {
            text: clean(&text.into()),
            tint,
        }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::tinted(text, None)
    }
}

/// Names come from configuration: no control character of theirs reaches the terminal.
pub(super) fn clean(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

#[derive(Clone, Copy, Debug)]
struct Column {
    title: &'static str,
    right: bool,
    /// 0 stays; of the others the highest goes first where the terminal is too narrow.
    spare: u8,
    /// Its cells may be cut to this.
    least: usize,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
}

const GAP: usize = 2;

impl Table {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// A column of text that may be cut when space is short.
    pub(super) fn text(mut self, title: &'static str) -> Self {
        self.columns.push(Column {
            title,
            right: false,
            spare: 0,
            least: 10,
        });
        self
    }

    /// A column of numbers: flush right, never cut.
    pub(super) fn number(mut self, title: &'static str) -> Self {
        self.columns.push(Column {
            title,
            right: true,
            spare: 0,
            least: usize::MAX,
        });
        self
    }

    /// The last column may be left out; the highest number goes first.
    pub(super) fn spare(mut self, order: u8) -> Self {
        if let Some(column) = self.columns.last_mut() {
            column.spare = order;
        }
        self
    }

    pub(super) fn row(&mut self, cells: Vec<Cell>) {
        debug_assert_eq!(cells.len(), self.columns.len());
        self.rows.push(cells);
    }

    /// Lines, each ended. Without a width nothing is left out or cut.
    pub(super) fn render(&self, width: Option<usize>, colour: bool) -> String {
        let (shown, widths) = self.layout(width);
        let titles: Vec<Cell> = self.columns.iter().map(|c| c.title.into()).collect();
        let mut out = String::new();
        for row in std::iter::once(&titles).chain(&self.rows) {
            self.line(row, &shown, &widths, colour, &mut out);
        }
        out
    }

    fn line(
        &self,
        row: &[Cell],
        shown: &[usize],
        widths: &[usize],
        colour: bool,
        out: &mut String,
    ) {
        let mut line = String::new();
        for (nth, &i) in shown.iter().enumerate() {
            let (Some(cell), width) = (row.get(i), widths[i]) else {
                continue;
            };
            let text = cut(&cell.text, width);
            let padding = " ".repeat(width - text.chars().count());
            let painted = match cell.tint {
                Some(tint) => tint.paint(&text, colour),
                None => text,
            };
            if nth > 0 {
                line.push_str(&" ".repeat(GAP));
            }
            if self.columns[i].right {
                line.push_str(&padding);
                line.push_str(&painted);
            } else {
                line.push_str(&painted);
                line.push_str(&padding);
            }
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }

    /// Which columns are shown, and how wide each is.
    fn layout(&self, limit: Option<usize>) -> (Vec<usize>, Vec<usize>) {
        let mut widths: Vec<usize> = self
            .columns
            .iter()
            .enumerate()
            .map(|(i, column)| {
                let cells = self.rows.iter().filter_map(|row| row.get(i));
                cells
                    .map(|cell| cell.text.chars().count())
                    .fold(column.title.chars().count(), usize::max)
            })
            .collect();
        let mut shown: Vec<usize> = (0..self.columns.len()).collect();
        let Some(limit) = limit else {
            return (shown, widths);
        };
        let total = |shown: &[usize], widths: &[usize]| {
            shown.iter().map(|i| widths[*i] + GAP).sum::<usize>()
        };
        let fits =
            |shown: &[usize], widths: &[usize]| total(shown, widths) <= limit.saturating_add(GAP);
        while !fits(&shown, &widths) {
            let Some(spare) = shown
                .iter()
                .copied()
                .filter(|i| self.columns[*i].spare > 0)
                .max_by_key(|i| self.columns[*i].spare)
            else {
                break;
            };
            shown.retain(|i| *i != spare);
        }
        while !fits(&shown, &widths) {
            let widest = shown
                .iter()
                .copied()
                .filter(|i| widths[*i] > self.least(*i))
                .max_by_key(|i| widths[*i]);
            match widest {
                Some(i) => widths[i] -= 1,
                None => break,
            }
        }
        (shown, widths)
    }

    fn least(&self, column: usize) -> usize {
        let column = &self.columns[column];
        column.least.max(column.title.chars().count())
    }
}

fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut cut: String = text.chars().take(width.saturating_sub(1)).collect();
    cut.push('…');
    cut
}
