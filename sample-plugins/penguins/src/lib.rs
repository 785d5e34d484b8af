//! A task library on the Palmer penguins table: ratios of one bird, statistics of a species.
#![forbid(unsafe_code)]

mod table;

use qtasks_plugin_api::{Error, Host, Plugin, TaskContext, TaskError, export_plugin};
use serde_json::json;

use table::{Penguin, Ratios, Statistics};

struct Penguins {
    table: Vec<Penguin>,
}

impl Plugin for Penguins {
    type Config = ();

    fn create(_config: (), _host: Host) -> Result<Self, Error> {
        Ok(Self { table: table::read()? })
    }
}

impl Penguins {
    fn penguin_ratios(&self, ctx: &TaskContext, _args: (), penguin: Penguin) -> Result<Ratios, TaskError> {
        let ratios = Ratios::of(&penguin.species, penguin.measurements()).ok_or_else(|| {
            let missing = penguin.missing();
            let message = format!("not measured: {}", missing.join(", "));
            ctx.plugin_error(json!({"message": message, "species": penguin.species, "missing": missing}))
        })?;
        Ok(ratios)
    }

    fn species_statistics(&self, _ctx: &TaskContext, (species,): (String,), _kwargs: ()) -> Result<Statistics, TaskError> {
        Statistics::of(&species, &self.table)
            .ok_or_else(|| TaskError::other("UnknownSpecies", format!("the table has no {species:?}")))
    }
}

export_plugin! {
    plugin: Penguins,
    tasks: { penguin_ratios => inline penguin_ratios, species_statistics => inline species_statistics },
}

#[cfg(test)]
mod tests {
    use super::*;
    use qtasks_plugin_api::testing::TestHost;
    use serde_json::{Map, Value};

    fn start() -> TestHost<Penguins> {
        TestHost::start("{}").expect("it starts")
    }

    /// The host's input, one task a line.
    fn tasks() -> Vec<Value> {
        include_str!("../tasks.jsonl").lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    #[test]
    fn the_first_344_tasks_are_the_rows_of_the_table() {
        let mut reader = csv::Reader::from_reader(include_str!("../data/penguins.csv").as_bytes());
        let columns = reader.headers().expect("headers").clone();
        let rows = reader.records().map(|record| {
            let record = record.expect("a row");
            let cell = |text: &str| serde_json::from_str(text).unwrap_or_else(|_| text.into());
            let kwargs: Map<_, _> = columns.iter().zip(&record).map(|(column, text)| (column.to_owned(), cell(text))).collect();
            json!({"task": "penguin_ratios", "kwargs": kwargs})
        });
        assert_eq!(tasks()[..344], rows.collect::<Vec<_>>());
    }

    #[test]
    fn all_but_two_birds_have_ratios() {
        let host = start();
        let outcomes = tasks().into_iter().take(344).map(|task| host.run_task("penguin_ratios", &json!([]), &task["kwargs"]));
        let (ratios, errors): (Vec<_>, Vec<_>) = outcomes.partition(Result::is_ok);
        assert_eq!((ratios.len(), errors.len()), (342, 2));
        let first = ratios[0].as_ref().expect("measured");
        assert_eq!(*first, json!({"species": "Adelie", "bill_ratio": 2.0909, "mass_per_flipper": 20.7182}));
    }

    #[test]
    fn a_missing_measurement_asks_the_plugins_and_names_it() {
        let row = json!({
            "species": "Gentoo", "island": "Biscoe", "bill_length_mm": "NA", "bill_depth_mm": 14.3,
            "flipper_length_mm": 216, "body_mass_g": "NA", "sex": "NA", "year": 2007,
        });
        let Err(TaskError::Plugin(error)) = start().run_task("penguin_ratios", &json!([]), &row) else {
            panic!("a plugin error");
        };
        let kwargs: Value = serde_json::from_str(error.kwargs.get()).expect("JSON");
        assert_eq!(
            kwargs,
            json!({
                "message": "not measured: bill_length_mm, body_mass_g",
                "species": "Gentoo",
                "missing": ["bill_length_mm", "body_mass_g"],
            })
        );
    }

    #[test]
    fn what_is_no_measurement_is_an_argument_error() {
        for wrong in [json!("long"), json!(0), json!(-3.5), json!(null)] {
            let row = json!({
                "species": "Adelie", "bill_length_mm": wrong, "bill_depth_mm": 1, "flipper_length_mm": 1, "body_mass_g": 1,
            });
            let error = start().run_task("penguin_ratios", &json!([]), &row).expect_err("no measurement").into_body();
            assert_eq!(error.kind, "ArgumentError");
            assert!(error.message.contains("measurement"), "{error}");
        }
    }

    #[test]
    fn statistics_count_birds_and_measurements_apart() {
        let adelie = start().run_task("species_statistics", &json!(["Adelie"]), &json!({})).expect("a known species");
        assert_eq!((&adelie["count"], &adelie["measurements"]["body_mass_g"]["measured"]), (&json!(152), &json!(151)));
        let mean = adelie["measurements"]["bill_length_mm"]["mean"].as_f64().expect("a number");
        assert!((mean - 38.791_390_728).abs() < 1e-6, "{mean}");
    }

    #[test]
    fn an_unknown_species_is_an_ordinary_error() {
        let Err(TaskError::Other(error)) = start().run_task("species_statistics", &json!(["Emperor"]), &json!({})) else {
            panic!("an ordinary error");
        };
        assert_eq!(error.to_string(), r#"UnknownSpecies: the table has no "Emperor""#);
    }
}
