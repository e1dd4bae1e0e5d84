//! Makes up a trace of multi-turn conversations, for those who have no trace.
//!
//! What sharing a KV cache lives on is in it: conversations arrive over time and begin with one of a
//! few system prompts, so that their first blocks are the same; each turn's prompt is all that was
//! said before, the answers included, plus a new message; between two turns somebody reads and
//! thinks; lengths have heavy tails; and many conversations never come back after the first turn.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};
use std::ops::RangeInclusive;

use super::TraceRequest;
use super::random::{Random, Tail};

/// Tokens of a block, as in the published traces.
const BLOCK_TOKENS: u64 = 512;
/// A conversation ends before its prompt would grow beyond this.
const CONTEXT_TOKENS_MAX: u64 = 128 << 10;
const SYSTEM_PROMPT_TOKENS: RangeInclusive<u64> = 300..=3_300;
/// What is said after the first turn: mostly a few sentences, now and then a pasted document.
const FOLLOW_UP_TOKENS_MEDIAN: u64 = 400;
const OUTPUT_TOKENS_MEDIAN: u64 = 330;
const OUTPUT_TOKENS_MAX: u64 = 2_000;
/// How long the model takes for a token of its answer.
const OUTPUT_TOKEN_MS: u64 = 25;
const THINK_TIME_MS: RangeInclusive<u64> = 1_000..=3_600_000;

/// What kind of trace to make. The defaults resemble an hour of a public chat service.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct GeneratorSettings {
    pub(crate) requests: u64,
    /// The same settings and seed give the same trace, on every machine.
    pub(crate) seed: u64,
    /// How many new conversations begin in a minute, on average.
    pub(crate) conversations_per_minute: u32,
    /// How many system prompts there are; each next one is used less than the one before.
    pub(crate) system_prompts: u32,
    /// Turns of a conversation, on average; one in so many ends after its first.
    pub(crate) turns_mean: f64,
    /// From an answer to the next message.
    pub(crate) think_time_median_s: u32,
    /// Of a conversation's first message, without the system prompt.
    pub(crate) first_message_tokens_median: u32,
}

impl Default for GeneratorSettings {
    fn default() -> Self {
        Self {
            requests: 10_000,
            seed: 0,
            conversations_per_minute: 110,
            system_prompts: 4,
            turns_mean: 1.7,
            think_time_median_s: 100,
            first_message_tokens_median: 6_000,
        }
    }
}

/// The settings in words.
impl fmt::Display for GeneratorSettings {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "generated: {} requests of conversations with {} turns on average, {} new ones a minute, \
             {} system prompts, first messages of {} tokens and {} s to think at the median, seed {}",
            self.requests,
            self.turns_mean,
            self.conversations_per_minute,
            self.system_prompts,
            self.first_message_tokens_median,
            self.think_time_median_s,
            self.seed,
        )
    }
}

/// A setting of which no trace can be made.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("a trace cannot have {value} {what}: give {smallest} to {largest}")]
pub(crate) struct SettingsError {
    what: &'static str,
    value: f64,
    smallest: f64,
    largest: f64,
}

impl GeneratorSettings {
    #[expect(clippy::cast_precision_loss, reason = "only compared with a far smaller bound")]
    fn check(&self) -> Result<(), SettingsError> {
        let bounds = [
            ("requests", self.requests as f64, 1.0, 1e12),
            ("conversations a minute", f64::from(self.conversations_per_minute), 1.0, 1e6),
            ("system prompts", f64::from(self.system_prompts), 1.0, 1e4),
            ("turns on average", self.turns_mean, 1.0, 1e3),
            ("seconds of thinking", f64::from(self.think_time_median_s), 1.0, 3_600.0),
            (
                "tokens in a first message",
                f64::from(self.first_message_tokens_median),
                1.0,
                CONTEXT_TOKENS_MAX as f64,
            ),
        ];
        for (what, value, smallest, largest) in bounds {
            // Not a number is in no range.
            if !(smallest..=largest).contains(&value) {
                return Err(SettingsError { what, value, smallest, largest });
            }
        }
        Ok(())
    }
}

/// The whole trace at once.
pub(crate) fn generate(settings: &GeneratorSettings) -> Result<Vec<TraceRequest>, SettingsError> {
    Ok(Generator::new(settings)?.collect())
}

/// Writes requests in the format that [`super::read`] takes, and flushes.
pub(crate) fn write(
    requests: impl IntoIterator<Item = TraceRequest>,
    out: &mut impl Write,
) -> io::Result<()> {
    for request in requests {
        serde_json::to_writer(&mut *out, &request)?;
        out.write_all(b"\n")?;
    }
    out.flush()
}

/// Gives the requests of a trace one by one. It holds only the conversations that are going on.
#[derive(Debug, Clone)]
pub(crate) struct Generator {
    settings: GeneratorSettings,
    random: Random,
    system_prompts: Vec<SystemPrompt>,
    /// By the time of their next turn; the number, given in order of arrival, parts those that fall
    /// into the same millisecond.
    waiting: BTreeMap<(u64, u64), Conversation>,
    next_arrival_ms: f64,
    arrived: u64,
    given: u64,
    /// Ids are given out in the order in which the blocks appear.
    next_hash_id: u64,
}

#[derive(Debug, Clone)]
struct SystemPrompt {
    tokens: u64,
    /// Its whole blocks; none before its first use.
    blocks: Vec<u64>,
}

#[derive(Debug, Clone)]
struct Conversation {
    /// Its first turn is over.
    begun: bool,
    system_prompt: usize,
    /// The whole blocks of the last prompt. Its last, partial block is another one in the next
    /// prompt, since more tokens are in it then.
    blocks: Vec<u64>,
    /// All that was said, answers included.
    tokens: u64,
}

impl Generator {
    pub(crate) fn new(settings: &GeneratorSettings) -> Result<Self, SettingsError> {
        settings.check()?;
        let mut random = Random::new(settings.seed);
        let system_prompts = (0..settings.system_prompts)
            .map(|_| SystemPrompt {
                tokens: random.within(SYSTEM_PROMPT_TOKENS),
                blocks: Vec::new(),
            })
            .collect();
        Ok(Self {
            settings: settings.clone(),
            random,
            system_prompts,
            waiting: BTreeMap::new(),
            next_arrival_ms: 0.0,
            arrived: 0,
            given: 0,
            next_hash_id: 0,
        })
    }

    /// Lets conversations begin until the earliest of all turns is among those waiting.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "milliseconds since the start: positive, and far below 2^53"
    )]
    fn admit(&mut self) {
        loop {
            let arrival_ms = self.next_arrival_ms as u64;
            let earliest = self.waiting.first_key_value();
            if earliest.is_some_and(|((due_ms, _), _)| *due_ms < arrival_ms) {
                return;
            }
            let system_prompt = self.pick_system_prompt();
            let conversation = Conversation {
                begun: false,
                system_prompt,
                blocks: Vec::new(),
                tokens: self.system_prompts[system_prompt].tokens,
            };
            self.waiting.insert((arrival_ms, self.arrived), conversation);
            self.arrived += 1;
            let gap_mean_ms = 60_000.0 / f64::from(self.settings.conversations_per_minute);
            self.next_arrival_ms += self.random.exponential() * gap_mean_ms;
        }
    }

    /// The second prompt is taken half as often as the first, the third a third as often, and so on.
    fn pick_system_prompt(&mut self) -> usize {
        let weight = |rank: u32| 1.0 / f64::from(rank + 1);
        let count = self.settings.system_prompts;
        let total: f64 = (0..count).map(weight).sum();
        let mut left = self.random.unit() * total;
        let mut picked = 0;
        for rank in 0..count {
            picked = rank as usize;
            left -= weight(rank);
            if left < 0.0 {
                break;
            }
        }
        picked
    }

    /// The next turn of a conversation: its request.
    fn turn(&mut self, now_ms: u64, conversation: &mut Conversation) -> TraceRequest {
        let (median, tail) = if conversation.begun {
            (FOLLOW_UP_TOKENS_MEDIAN, Tail::Heavy)
        } else {
            conversation.blocks = self.system_prompt_blocks(conversation.system_prompt);
            let median = u64::from(self.settings.first_message_tokens_median);
            (median, Tail::Light)
        };
        conversation.begun = true;
        let room = CONTEXT_TOKENS_MAX - conversation.tokens;
        let message = self.random.heavy_tailed(median, tail, 1..=room);
        let prompt_tokens = conversation.tokens + message;
        let output_tokens =
            self.random.heavy_tailed(OUTPUT_TOKENS_MEDIAN, Tail::Light, 1..=OUTPUT_TOKENS_MAX);
        let whole = prompt_tokens / BLOCK_TOKENS;
        let new = whole.saturating_sub(conversation.blocks.len() as u64);
        let first_new = self.next_hash_id;
        self.next_hash_id += new;
        conversation.blocks.extend(first_new..self.next_hash_id);

        let mut hash_ids = conversation.blocks.clone();
        if !prompt_tokens.is_multiple_of(BLOCK_TOKENS) {
            hash_ids.push(self.next_hash_id);
            self.next_hash_id += 1;
        }
        conversation.tokens = prompt_tokens + output_tokens;
        TraceRequest {
            timestamp_ms: now_ms,
            input_length: prompt_tokens,
            output_length: output_tokens,
            hash_ids,
        }
    }

    /// The whole blocks of a system prompt, named when it is first used.
    fn system_prompt_blocks(&mut self, index: usize) -> Vec<u64> {
        let prompt = &mut self.system_prompts[index];
        if prompt.blocks.is_empty() {
            let first_new = self.next_hash_id;
            self.next_hash_id += prompt.tokens / BLOCK_TOKENS;
            prompt.blocks = (first_new..self.next_hash_id).collect();
        }
        prompt.blocks.clone()
    }

    /// When the conversation goes on, if it does.
    fn comes_back_ms(&mut self, request: &TraceRequest, tokens: u64) -> Option<u64> {
        let ends = self.random.unit() < 1.0 / self.settings.turns_mean;
        let think_median_ms = u64::from(self.settings.think_time_median_s) * 1_000;
        let think_ms = self.random.heavy_tailed(think_median_ms, Tail::Heavy, THINK_TIME_MS);
        let answer_ms = request.output_length * OUTPUT_TOKEN_MS;
        let fits = tokens < CONTEXT_TOKENS_MAX;
        (fits && !ends).then_some(request.timestamp_ms + answer_ms + think_ms)
    }
}

impl Iterator for Generator {
    type Item = TraceRequest;

    fn next(&mut self) -> Option<TraceRequest> {
        if self.given == self.settings.requests {
            return None;
        }
        self.admit();
        let ((now_ms, number), mut conversation) = self.waiting.pop_first()?;
        let request = self.turn(now_ms, &mut conversation);
        if let Some(due_ms) = self.comes_back_ms(&request, conversation.tokens) {
            self.waiting.insert((due_ms, number), conversation);
        }
        self.given += 1;
        Some(request)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = usize::try_from(self.settings.requests - self.given).unwrap_or(usize::MAX);
        (left.min(1 << 20), Some(left))
    }
}

#[cfg(test)]
#[path = "generator_tests.rs"]
mod tests;
