//! Answers for penguins that were not measured with the means of their species.
#![forbid(unsafe_code)]

#[path = "../../penguins/src/table.rs"]
mod table;

use std::collections::BTreeMap;

use qtasks_plugin_api::{Answer, Error, Host, PLUGIN_ERROR, Plugin, TriggerError, export_plugin};
use serde::Serialize;

use table::{MEASUREMENTS, Penguin, Ratios, Statistics};

struct PenguinRecovery {
    /// By species, in the order of [`MEASUREMENTS`].
    means: BTreeMap<String, [Option<f64>; 4]>,
}

/// What `penguin_ratios` would have returned, and what of it is an estimate.
#[derive(Serialize)]
struct Estimate {
    #[serde(flatten)]
    ratios: Ratios,
    estimated_from_species_mean: Vec<&'static str>,
}

impl Plugin for PenguinRecovery {
    type Config = ();

    fn create(_config: (), _host: Host) -> Result<Self, Error> {
        let table = table::read()?;
        let mut means = BTreeMap::new();
        for Penguin { species, .. } in &table {
            if !means.contains_key(species)
                && let Some(statistics) = Statistics::of(species, &table)
            {
                means.insert(species.clone(), MEASUREMENTS.map(|name| statistics.measurements[name].mean));
            }
        }
        Ok(Self { means })
    }
}

impl PenguinRecovery {
    fn on_error(&self, event: TriggerError<'_>) -> Result<Option<Answer>, Error> {
        let is_unmeasured_penguin = event.task_broker.task_name == "penguin_ratios"
            && event.e.kind == PLUGIN_ERROR
            && event.e.kwargs.get::<Vec<String>>("missing").is_some();
        if !is_unmeasured_penguin {
            return Ok(None);
        }
        Ok(self.estimate(&event.task_broker.kwargs.to()?).map(Answer::result))
    }

    fn estimate(&self, penguin: &Penguin) -> Option<Estimate> {
        let means = self.means.get(&penguin.species)?;
        let measured = penguin.measurements();
        let completed = std::array::from_fn(|index| measured[index].or(means[index]));
        Some(Estimate { ratios: Ratios::of(&penguin.species, completed)?, estimated_from_species_mean: penguin.missing() })
    }
}

export_plugin! {
    plugin: PenguinRecovery,
    handlers: { task_executor_run_task_trigger_error => inline on_error },
}

#[cfg(test)]
mod tests {
    use super::*;
    use qtasks_plugin_api::testing::{RaisedTask, TestHost};
    use serde_json::{Value, json};

    fn start() -> TestHost<PenguinRecovery> {
        TestHost::start("{}").expect("it starts")
    }

    fn unmeasured(species: &str, bill_length: Value, missing: &[&str]) -> RaisedTask {
        let row = json!({
            "species": species, "island": "Torgersen", "bill_length_mm": bill_length, "bill_depth_mm": "NA",
            "flipper_length_mm": "NA", "body_mass_g": "NA", "sex": "NA", "year": 2007,
        });
        RaisedTask::new("penguin_ratios").arguments(json!([]), row).payload("missing", missing)
    }

    #[test]
    fn a_bird_that_was_not_measured_at_all_gets_the_means_of_its_species() {
        let outcome = start().raise(&unmeasured("Adelie", json!("NA"), &MEASUREMENTS));
        // Means of 151 birds: 38.7914 mm / 18.3464 mm, and 3700.6623 g / 189.9536 mm.
        let estimate = json!({
            "species": "Adelie", "bill_ratio": 2.1144, "mass_per_flipper": 19.4819,
            "estimated_from_species_mean": MEASUREMENTS,
        });
        assert_eq!(outcome.result(), Some(estimate));
    }

    #[test]
    fn what_was_measured_is_kept() {
        let outcome = start().raise(&unmeasured("Adelie", json!(36.6928), &MEASUREMENTS[1..]));
        let estimate = outcome.result().expect("an answer");
        assert_eq!(estimate["bill_ratio"], json!(2.0));
        assert_eq!(estimate["estimated_from_species_mean"], json!(MEASUREMENTS[1..]));
    }

    #[test]
    fn everything_else_keeps_its_error() {
        let host = start();
        assert!(host.raise(&unmeasured("Emperor", json!("NA"), &MEASUREMENTS)).is_pass());
        assert!(host.raise(&unmeasured("Adelie", json!("NA"), &MEASUREMENTS).error_kind("TimeoutError")).is_pass());
        assert!(host.raise(&RaisedTask::new("penguin_ratios").message("the sea is frozen")).is_pass());
        assert!(host.raise(&RaisedTask::new("species_statistics").payload("missing", MEASUREMENTS.to_vec())).is_pass());
    }
}
