/* SPDX-License-Identifier: GPL-2.0-only */
/* Can a segment be of this connection? What somebody who does not see the packets can only guess. */
#ifndef MIDSTREAM_PLAUSIBLE_H
#define MIDSTREAM_PLAUSIBLE_H

#include "connection.h"
#include "marked.h"

/* What the logger may have sent since the sensor's last segment, in bytes. */
#define ACKNOWLEDGED_WINDOW (1 << 20)
#define TIMESTAMP_LIFETIME (24 * 86400 * 1000000000ULL)

/* RFC 7323, section 5: an old duplicate, perhaps of four gigabytes ago, has an old timestamp. One
 * of the connection's is itself too old to compare with after 24 days.
 */
static __always_inline bool is_stale(const struct packet *p, const struct connection *c)
{
	return p->timestamp && c->timestamp && (__s32)(p->timestamp - c->timestamp) < 0 &&
	       p->time - c->seen < TIMESTAMP_LIFETIME;
}

/* RFC 5961, section 5. The logger's replies do not pass here, so what it has sent is known only from
 * what the sensor acknowledged before.
 */
static __always_inline bool acknowledges_nonsense(const struct packet *p, const struct connection *c)
{
	__s32 ahead = p->acknowledgement - c->acknowledged;

	return c->established && (ahead > ACKNOWLEDGED_WINDOW || ahead < -ACKNOWLEDGED_WINDOW);
}

/* Its numbers are what the sensor would send next, or again, on this connection. The logger says
 * nothing while a sensor sends, so what is acknowledged stays the same.
 */
static __always_inline bool fits(const struct packet *p, const struct connection *c)
{
	__s32 ahead = p->sequence - (c->first + (__u32)c->next);

	return c->established && p->acknowledgement == c->acknowledged && ahead <= EARLY_WINDOW &&
	       ahead >= -KNOWN_WINDOW && !is_stale(p, c);
}

/* Could this be data of the connection that a later SYN asked for, and not of this one? The SYN may
 * be a stranger's, whose number lies right by chance; what the two ends said before, he cannot know.
 */
static __always_inline bool belongs_to_other(const struct packet *p, const struct connection *c)
{
	return c->other_first && p->sequence - c->other_first < KNOWN_WINDOW && !fits(p, c);
}

#endif
