//! Medians with their ranges, side by side.

/// The figures of several runs.
#[derive(Clone, Debug, Default)]
pub struct Runs(Vec<f64>);

impl Runs {
    /// Adds a run's figure.
    pub fn push(&mut self, figure: f64) {
        self.0.push(figure);
    }

    /// The middle one.
    pub fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
    }

    /// `median (min–max)` with as many digits as the size deserves.
    pub fn show(&self) -> String {
        let least = self.0.iter().copied().fold(f64::INFINITY, f64::min);
        let most = self.0.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        format!("{} ({}–{})", digits(self.median()), digits(least), digits(most))
    }
}

/// Figures by name, in the order in which they were first measured.
#[derive(Clone, Debug, Default)]
pub struct Figures(Vec<(String, Runs)>);

impl Figures {
    /// Adds a run's figure.
    pub fn note(&mut self, name: impl Into<String>, figure: f64) {
        let name = name.into();
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, runs)) => runs.push(figure),
            None => {
                let mut runs = Runs::default();
                runs.push(figure);
                self.0.push((name, runs));
            }
        }
    }

    fn show(&self, name: &str) -> String {
        self.0.iter().find(|(known, _)| known == name).map_or_else(|| "–".to_owned(), |(_, runs)| runs.show())
    }
}

/// All figures in one table, a column each.
pub fn side_by_side(columns: &[&str], figures: &[Figures]) -> String {
    let mut names: Vec<&String> = Vec::new();
    for (name, _) in figures.iter().flat_map(|figures| &figures.0) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let rows: Vec<(String, Vec<String>)> = names
        .into_iter()
        .map(|name| (name.clone(), figures.iter().map(|figures| figures.show(name)).collect()))
        .collect();
    markdown(columns, &rows)
}

fn digits(figure: f64) -> String {
    match figure.abs() {
        large if large >= 100.0 => format!("{figure:.0}"),
        middle if middle >= 10.0 => format!("{figure:.1}"),
        _ => format!("{figure:.2}"),
    }
}

/// A Markdown table: a row per measure, a column per broker.
pub fn markdown(columns: &[&str], rows: &[(String, Vec<String>)]) -> String {
    let mut text = format!("| | {} |\n|---|{}\n", columns.join(" | "), "---|".repeat(columns.len()));
    for (name, cells) in rows {
        text.push_str(&format!("| {name} | {} |\n", cells.join(" | ")));
    }
    text
}
