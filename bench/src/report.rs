//! temporary
use crate::{failure::Outcome, results::Results};
pub(crate) fn page(results: &Results) -> String {
    serde_json::to_string(&results.limits).unwrap_or_default()
}
pub(crate) fn write_into(_page: &std::path::Path, _results: &Results) -> Outcome<()> {
    Ok(())
}
