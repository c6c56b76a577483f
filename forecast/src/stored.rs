//! The persistent forms of forecasters, device models and class scores.
//!
//! Invariants: what is encoded decodes to an equal state; lengths are checked before they are believed. Must not know
//! what the numbers mean.

use std::collections::VecDeque;

use crate::HORIZONS_H;
use crate::codec::{DecodeError, Kind, Reader, Writer};
use crate::conformal::{Calibration, ClassScores, SCORES};
use crate::device::{DeviceClass, DeviceModel, Drift, KEPT};
use crate::experts::WEEK;
use crate::forecaster::{Decision, Forecast, Forecaster, Lane};
use crate::number::Packed;
use crate::skill::Skill;

const FORECASTER: Kind = Kind { name: "forecaster", tag: b'F', version: 1 };
const DEVICE: Kind = Kind { name: "device model", tag: b'D', version: 1 };
const CLASS: Kind = Kind { name: "class of scores", tag: b'C', version: 1 };

impl Forecaster {
    /// The persistent form, about 6 KB after a week.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new(FORECASTER);
        out.f64(self.wanted_violations());
        out.u8(u8::from(self.newest.is_some()));
        out.u64(self.newest.unwrap_or_default());
        put_length(&mut out, self.week.len());
        for (mean, peak, seen) in &self.week {
            out.packed(*mean);
            out.packed(*peak);
            out.u8(u8::from(*seen));
        }
        let smooth = &self.smooth;
        smooth.level.iter().chain([&smooth.base]).chain(&smooth.season).for_each(|v| out.f64(*v));
        out.u64(smooth.hours);
        self.lanes.iter().for_each(|lane| put_lane(&mut out, lane));
        out.finish()
    }

    /// Reads what [`Forecaster::encode`] wrote.
    ///
    /// # Errors
    /// If the bytes are damaged, cut, or of another version: the caller begins anew, from the history.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut from = Reader::new(FORECASTER, bytes)?;
        let mut this = Self::new(from.f64()?);
        let any = from.u8()? != 0;
        let newest = from.u64()?;
        this.newest = any.then_some(newest);
        for _ in 0..get_length(&mut from, WEEK)? {
            this.week.push_back((from.packed()?, from.packed()?, from.u8()? != 0));
        }
        if this.week.is_empty() == any {
            return Err(from.wrong("hours without a newest one, or none with"));
        }
        let smooth = &mut this.smooth;
        for value in smooth.level.iter_mut().chain([&mut smooth.base]).chain(&mut smooth.season) {
            *value = from.f64()?;
        }
        smooth.hours = from.u64()?;
        for lane in &mut this.lanes {
            get_lane(&mut from, lane)?;
        }
        from.end()?;
        Ok(this)
    }
}

fn put_length(out: &mut Writer, length: usize) {
    out.u16(u16::try_from(length).unwrap_or(u16::MAX));
}

fn get_length(from: &mut Reader<'_>, most: usize) -> Result<usize, DecodeError> {
    let length = usize::from(from.u16()?);
    if length > most { Err(from.wrong("a length")) } else { Ok(length) }
}

fn put_skill<const N: usize>(out: &mut Writer, skill: &Skill<N>) {
    skill.errors.iter().for_each(|error| out.f32(*error));
    out.u16(skill.seen);
}

fn get_skill<const N: usize>(from: &mut Reader<'_>, skill: &mut Skill<N>) -> Result<(), DecodeError> {
    for error in &mut skill.errors {
        *error = from.f32()?;
    }
    skill.seen = from.u16()?;
    Ok(())
}

fn put_lane(out: &mut Writer, lane: &Lane) {
    put_skill(out, &lane.mean_skill);
    lane.by_hour.iter().for_each(|skill| put_skill(out, skill));
    put_skill(out, &lane.peak_skill);
    out.f64(lane.calibration.aim);
    put_length(out, lane.calibration.scores.len());
    lane.calibration.scores.iter().for_each(|score| out.packed(*score));
    put_length(out, lane.pending.len());
    for decision in &lane.pending {
        out.u64(decision.hour);
        let Decision { expected, bound, offset, .. } = decision;
        decision
            .means
            .iter()
            .chain(&decision.peaks)
            .chain([expected, bound, offset])
            .for_each(|v| out.packed(*v));
    }
    let Forecast { mean, peak_bound, confidence, .. } = lane.current;
    [mean, peak_bound, confidence].into_iter().for_each(|v| out.f64(v));
}

fn get_lane(from: &mut Reader<'_>, lane: &mut Lane) -> Result<(), DecodeError> {
    get_skill(from, &mut lane.mean_skill)?;
    for skill in &mut lane.by_hour {
        get_skill(from, skill)?;
    }
    get_skill(from, &mut lane.peak_skill)?;
    let mut calibration = Calibration::new(lane.calibration.wanted());
    calibration.aim = from.f64()?;
    for _ in 0..get_length(from, SCORES)? {
        calibration.scores.push_back(from.packed()?);
    }
    lane.calibration = calibration;
    lane.pending = VecDeque::new();
    for _ in 0..get_length(from, lane.current.horizon_h as usize)? {
        let mut decision = Decision {
            hour: from.u64()?,
            means: [Packed::ZERO; _],
            peaks: [Packed::ZERO; _],
            expected: Packed::ZERO,
            bound: Packed::ZERO,
            offset: Packed::ZERO,
        };
        let Decision { means, peaks, expected, bound, offset, .. } = &mut decision;
        for value in means.iter_mut().chain(peaks).chain([expected, bound, offset]) {
            *value = from.packed()?;
        }
        lane.pending.push_back(decision);
    }
    lane.current.mean = from.f64()?;
    lane.current.peak_bound = from.f64()?;
    lane.current.confidence = from.f64()?;
    Ok(())
}

impl DeviceModel {
    /// The persistent form, 0.4 KB.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new(DEVICE);
        out.u8(self.class.code());
        out.f64(self.probed.unwrap_or_default());
        out.u16(self.idle_seen);
        let drift = match self.drift {
            None => 0,
            Some((_, Drift::Slower)) => 1,
            Some((_, Drift::Faster)) => 2,
        };
        out.u8(drift);
        out.u64(self.drift.map_or(0, |(at_s, _)| at_s));
        let numbers = [&self.idle, &self.delivered, &self.slower, &self.faster];
        numbers.into_iter().chain(&self.fit).chain(&self.spread).for_each(|v| out.f64(*v));
        for ring in [&self.saturated, &self.residuals] {
            put_length(&mut out, ring.len());
            ring.iter().for_each(|v| out.packed(*v));
        }
        out.finish()
    }

    /// Reads what [`DeviceModel::encode`] wrote.
    ///
    /// # Errors
    /// If the bytes are damaged, cut, or of another version: the caller begins anew.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut from = Reader::new(DEVICE, bytes)?;
        let class = DeviceClass::from_code(from.u8()?).ok_or(from.wrong("the class"))?;
        let mut this = Self::new(class);
        let probed = from.f64()?;
        this.probed = (probed > 0.0).then_some(probed);
        this.idle_seen = from.u16()?;
        let drift = from.u8()?;
        let at_s = from.u64()?;
        this.drift = match drift {
            0 => None,
            1 => Some((at_s, Drift::Slower)),
            2 => Some((at_s, Drift::Faster)),
            _ => return Err(from.wrong("the drift")),
        };
        let numbers = [&mut this.idle, &mut this.delivered, &mut this.slower, &mut this.faster];
        for value in numbers.into_iter().chain(&mut this.fit).chain(&mut this.spread) {
            *value = from.f64()?;
        }
        if this.idle <= 0.0 || this.fit[1] <= 0.0 {
            return Err(from.wrong("a latency of nothing"));
        }
        for ring in [&mut this.saturated, &mut this.residuals] {
            for _ in 0..get_length(&mut from, KEPT)? {
                ring.push_back(from.packed()?);
            }
        }
        from.end()?;
        Ok(this)
    }
}

impl ClassScores {
    /// The persistent form: 10 bytes a score that ever came, up to about 20 KB.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new(CLASS);
        out.u64(self.day);
        for lane in &self.lanes {
            out.u64(lane.hour);
            [lane.decisions, lane.excess, lane.aim].into_iter().for_each(|v| out.f64(v));
            let some = || lane.counts.iter().enumerate().filter(|(_, count)| **count > 0);
            put_length(&mut out, some().count());
            for (bucket, count) in some() {
                put_length(&mut out, bucket);
                out.u64(*count);
            }
        }
        out.finish()
    }

    /// Reads what [`ClassScores::encode`] wrote.
    ///
    /// # Errors
    /// If the bytes are damaged, cut, or of another version: the caller begins anew.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut from = Reader::new(CLASS, bytes)?;
        let mut this = Self::new();
        this.day = from.u64()?;
        for lane in &mut this.lanes {
            lane.hour = from.u64()?;
            for value in [&mut lane.decisions, &mut lane.excess, &mut lane.aim] {
                *value = from.f64()?;
            }
            for _ in 0..get_length(&mut from, lane.counts.len())? {
                let bucket = usize::from(from.u16()?);
                let count = from.u64()?;
                let slot = lane.counts.get_mut(bucket).ok_or(from.wrong("a bucket"))?;
                *slot = count;
                lane.total = lane.total.saturating_add(count);
            }
        }
        debug_assert_eq!(this.lanes.len(), HORIZONS_H.len());
        from.end()?;
        Ok(this)
    }
}
