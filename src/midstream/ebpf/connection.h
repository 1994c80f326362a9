/* SPDX-License-Identifier: GPL-2.0-only */
/* What is held of a connection's stream, and how a segment changes it.
 *
 * A sequence number has 32 bits and wraps; a stream offset has 64 and does not. Offset 0 is the
 * first byte of data. Everything here counts in offsets.
 */
#ifndef MIDSTREAM_CONNECTION_H
#define MIDSTREAM_CONNECTION_H

#include <linux/if_ether.h>

#include "bpf.h"
#include "const.h"
#include "record.h"

/* Data behind a hole is held in at most this many ranges ... */
#define EARLY_RANGES 8
/* ... and at most this far behind it, which bounds what the application must keep to put it in order. */
#define EARLY_WINDOW (1 << 20)
/* A byte sent again is at most this far behind: no stack keeps more unacknowledged. What seems
 * farther behind belongs to another numbering, and is not known at all.
 */
#define KNOWN_WINDOW (1 << 24)
#define NO_FIN (~0ULL)

struct range {
	__u64 start;
	__u64 end; /* 0: the slot is free; data behind a hole never ends at offset 0 */
};

struct connection {
	struct bpf_spin_lock lock;
	__u32 number;
	__u64 next;	    /* every byte before this offset is held */
	__u64 fin;	    /* where the stream ends, or NO_FIN */
	__u64 seen;	    /* when the sensor last sent something that fits, as bpf_ktime_get_ns() counts */
	__u32 first;	    /* the sequence number of offset 0: the SYN's plus one (RFC 9293, section 3.4) */
	__u32 acknowledged; /* the last acknowledgement number that came with data in order */
	__u32 timestamp;    /* likewise, TSval (RFC 7323); 0: none yet */
	__u32 other_first;  /* `first` of the connection that a later SYN asks for; 0: none */
	__u16 sensor;
	__u8 mac[ETH_ALEN];
	__u32 destination;  /* of its packets: a position in const.toml's loggers, or HERE */
	__u16 early_ranges; /* slots in use */
	__u16 established;  /* the sensor has answered its peer, so `acknowledged` is set; else nothing is held */
	struct range early[EARLY_RANGES];
	struct range grown; /* scratch of claim_with_holes() */
	__u64 asked;	    /* when its sensor was last asked whether it knows it (reclaim.h); 0: never */
	__u32 questions;    /* that it has not answered */
	__u32 unused;
	__u64 opened;	    /* when its SYN came, as `seen` */
};

/* A connection whose stream is wholly held: enough to recognise what is sent again. */
struct finished {
	__u64 length;
	__u32 first;
	__u32 destination;
};

/* The offset of a sequence number that lies within 2 GiB of `next` (RFC 1982 arithmetic);
 * negative if it lies before the stream, as in a keep-alive probe of an empty one.
 */
static __always_inline __s64 stream_offset(__u32 sequence, __u32 first, __u64 next)
{
	return (__s64)next + (__s32)(sequence - (first + (__u32)next));
}

enum claim {
	CLAIM_STORED,
	CLAIM_OUT_OF_ORDER,
	CLAIM_DUPLICATE,
	CLAIM_OUT_OF_WINDOW,
	CLAIM_BEYOND_FIN,
	CLAIM_BAD_CHECKSUM,
};

/* Add [start, end) to the ranges behind the hole, or, where it closes the hole, move `next` over
 * it and over every range that it reaches. Stored ranges neither overlap nor touch one another,
 * so one pass absorbs all that the new one meets.
 *
 * Behind the hole no byte is taken, or sent on, twice: which of two versions Linux keeps there depends
 * on where its segments begin and end. An honest sensor fills the hole first, and then the rest is in order or
 * known. What fills the hole replaces what lies behind it, in the logger's kernel and in the reader.
 *
 * The growing range lives in the map: the verifier forgets what it knew of a value in memory, and
 * so need not follow every combination of eight comparisons.
 */
static __always_inline enum claim claim_with_holes(struct connection *c, __u64 start, __u64 end)
{
	volatile struct range *grown = &c->grown;

	for (int i = 0; start > c->next && i < EARLY_RANGES; i++)
		if (c->early[i].start < end && start < c->early[i].end)
			return CLAIM_OUT_OF_WINDOW;

	grown->start = start;
	grown->end = end;
	for (int i = 0; i < EARLY_RANGES; i++) {
		struct range *r = &c->early[i];

		if (!r->end || grown->start > r->end || r->start > grown->end)
			continue;
		if (r->start < grown->start)
			grown->start = r->start;
		if (r->end > grown->end)
			grown->end = r->end;
		r->end = 0;
		c->early_ranges--;
	}
	if (grown->start <= c->next) {
		c->next = grown->end;
		return CLAIM_STORED;
	}
	for (int i = 0; i < EARLY_RANGES; i++) {
		if (!c->early[i].end) {
			c->early[i].start = grown->start;
			c->early[i].end = grown->end;
			c->early_ranges++;
			return CLAIM_OUT_OF_ORDER;
		}
	}
	return CLAIM_OUT_OF_WINDOW; /* every slot is in use, so none was absorbed */
}

/* Is this segment impossible, given where the stream ends, or would end? */
static __always_inline bool contradicts_fin(const struct connection *c, __s64 end, bool fin)
{
	if (c->fin != NO_FIN)
		return fin ? end != (__s64)c->fin : end > (__s64)c->fin;
	if (!fin)
		return false;
	if (end < (__s64)c->next)
		return true;
	for (int i = 0; i < EARLY_RANGES; i++)
		if ((__s64)c->early[i].end > end)
			return true;
	return false;
}

/* Decide on a segment that holds the bytes [start, end), and the end of the stream if `fin`, and
 * take what is new of it. Called with the connection's lock held. A byte that is known may be
 * stored again beside one that is new; the reader cuts: of a byte in order the first version stays.
 */
static __always_inline enum claim claim(struct connection *c, __s64 start, __s64 end, bool fin)
{
	bool ends_stream = fin && c->fin == NO_FIN;
	__s64 next = c->next;
	enum claim verdict;

	if (contradicts_fin(c, end, fin))
		return CLAIM_BEYOND_FIN;
	if (end <= next && !ends_stream)
		return CLAIM_DUPLICATE;
	/* Nothing honest lies before the stream and reaches into it. */
	if (end - next > EARLY_WINDOW || start < 0)
		return CLAIM_OUT_OF_WINDOW;

	if (start < next)
		start = next;
	if (start == end) {
		verdict = CLAIM_DUPLICATE;
	} else if (start == next && !c->early_ranges) {
		c->next = end;
		verdict = CLAIM_STORED;
	} else {
		verdict = claim_with_holes(c, start, end);
	}
	if (ends_stream && verdict != CLAIM_OUT_OF_WINDOW) {
		c->fin = end;
		/* The data may be known; that it ends here is not, and the reader must be told. */
		if (verdict == CLAIM_DUPLICATE)
			verdict = end == (__s64)c->next ? CLAIM_STORED : CLAIM_OUT_OF_ORDER;
	}
	return verdict;
}

#endif
