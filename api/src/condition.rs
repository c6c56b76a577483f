//! Conditions, as every Kubernetes resource has them. Must not know: what time it is (times are arguments).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ConditionStatus {
    /// It does.
    True,
    /// It does not.
    False,
    /// Nobody can say.
    Unknown,
}

/// One aspect of an object's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Which aspect.
    #[serde(rename = "type")]
    #[schemars(length(min = 1, max = 316))]
    pub kind: String,
    /// Whether it holds.
    pub status: ConditionStatus,
    /// The generation of the object that this was said of.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub observed_generation: i64,
    /// When `status` changed last (RFC 3339).
    #[schemars(extend("format" = "date-time"))]
    pub last_transition_time: String,
    /// Why, in one word for programs.
    #[schemars(length(min = 1, max = 1024))]
    pub reason: String,
    /// Why, for people.
    #[schemars(length(max = 32768))]
    pub message: String,
}

/// Puts a condition in place of the one of its type; the time of the last transition stays unless the status changed.
pub fn set_condition(all: &mut Vec<Condition>, mut new: Condition) {
    match all.iter_mut().find(|c| c.kind == new.kind) {
        Some(old) => {
            if old.status == new.status {
                new.last_transition_time = std::mem::take(&mut old.last_transition_time);
            }
            *old = new;
        }
        None => all.push(new),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_transition_stays_until_the_status_changes() {
        let c = |status, at: &str| Condition {
            kind: "Ready".into(),
            status,
            observed_generation: 1,
            last_transition_time: at.into(),
            reason: "R".into(),
            message: String::new(),
        };
        let mut all = vec![];
        set_condition(&mut all, c(ConditionStatus::True, "1"));
        set_condition(&mut all, c(ConditionStatus::True, "2"));
        assert_eq!(all[0].last_transition_time, "1");
        set_condition(&mut all, c(ConditionStatus::False, "3"));
        assert_eq!((all.len(), all[0].last_transition_time.as_str()), (1, "3"));
    }
}
