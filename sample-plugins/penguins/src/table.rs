//! The Palmer penguins table, and what can be computed from it.
//!
//! `penguin-recovery` includes this file too: two plugins, one reading of the table.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, de};

const CSV: &str = include_str!("../data/penguins.csv");

/// What is measured of a bird.
pub(crate) const MEASUREMENTS: [&str; 4] = ["bill_length_mm", "bill_depth_mm", "flipper_length_mm", "body_mass_g"];

/// Every bird of the table.
pub(crate) fn read() -> Result<Vec<Penguin>, csv::Error> {
    csv::Reader::from_reader(CSV.as_bytes()).deserialize().collect()
}

/// One row of the table, from CSV or from JSON. Island, sex and year are not needed here.
#[derive(Debug, Deserialize)]
pub(crate) struct Penguin {
    pub(crate) species: String,
    #[serde(deserialize_with = "number_or_na")]
    bill_length_mm: Option<f64>,
    #[serde(deserialize_with = "number_or_na")]
    bill_depth_mm: Option<f64>,
    #[serde(deserialize_with = "number_or_na")]
    flipper_length_mm: Option<f64>,
    #[serde(deserialize_with = "number_or_na")]
    body_mass_g: Option<f64>,
}

fn number_or_na<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a measurement is a number or \"NA\"")]
    enum Cell {
        Number(f64),
        Missing(Missing),
    }
    #[derive(Deserialize)]
    enum Missing {
        #[serde(rename = "NA")]
        NotAvailable,
    }
    match Cell::deserialize(deserializer)? {
        // A bird without extent is a slip of the pen, and dividing by it has no JSON form.
        Cell::Number(number) if number <= 0.0 => Err(de::Error::custom(format_args!("{number} is no measurement of a bird"))),
        Cell::Number(number) => Ok(Some(number)),
        Cell::Missing(Missing::NotAvailable) => Ok(None),
    }
}

impl Penguin {
    /// In the order of [`MEASUREMENTS`].
    pub(crate) fn measurements(&self) -> [Option<f64>; 4] {
        [self.bill_length_mm, self.bill_depth_mm, self.flipper_length_mm, self.body_mass_g]
    }

    /// What was not measured.
    pub(crate) fn missing(&self) -> Vec<&'static str> {
        MEASUREMENTS.into_iter().zip(self.measurements()).filter(|(_, value)| value.is_none()).map(|(name, _)| name).collect()
    }
}

/// What `penguin_ratios` returns.
#[derive(Debug, Serialize)]
pub(crate) struct Ratios {
    species: String,
    bill_ratio: f64,
    mass_per_flipper: f64,
}

impl Ratios {
    /// The ratios of these measurements, when all are there.
    pub(crate) fn of(species: &str, measurements: [Option<f64>; 4]) -> Option<Self> {
        let [bill_length, bill_depth, flipper_length, body_mass] = measurements;
        Some(Self {
            species: species.to_owned(),
            bill_ratio: round(bill_length? / bill_depth?),
            mass_per_flipper: round(body_mass? / flipper_length?),
        })
    }
}

fn round(number: f64) -> f64 {
    (number * 1e4).round() / 1e4
}

/// What `species_statistics` returns.
#[derive(Debug, Serialize)]
pub(crate) struct Statistics {
    species: String,
    count: usize,
    pub(crate) measurements: BTreeMap<&'static str, Measured>,
}

/// One measurement of a species.
#[derive(Debug, Serialize)]
pub(crate) struct Measured {
    measured: usize,
    pub(crate) mean: Option<f64>,
}

impl Statistics {
    /// The statistics of a species, when the table knows it.
    pub(crate) fn of(species: &str, table: &[Penguin]) -> Option<Self> {
        let birds: Vec<_> = table.iter().filter(|penguin| penguin.species == species).collect();
        let measured = |index: usize| {
            let values: Vec<_> = birds.iter().filter_map(|penguin| penguin.measurements()[index]).collect();
            let mean = (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64);
            Measured { measured: values.len(), mean }
        };
        let measurements = MEASUREMENTS.into_iter().enumerate().map(|(index, name)| (name, measured(index))).collect();
        (!birds.is_empty()).then(|| Self { species: species.to_owned(), count: birds.len(), measurements })
    }
}
