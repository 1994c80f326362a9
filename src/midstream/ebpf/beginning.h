/* SPDX-License-Identifier: GPL-2.0-only */
/* Which connections of a sensor this ring had first: what its logger has from before them is in no ring any more, and
 * a replay asks for it (hardworker/history.py).
 */
#ifndef MIDSTREAM_BEGINNING_H
#define MIDSTREAM_BEGINNING_H

#include "marked.h"
#include "tables.h"

/* The sensor answers its peer for the first time: noted before the peer hears of it. Several are noted, for they may
 * reach the logger in another order.
 */
static __always_inline void note_beginning(const struct packet *p, const struct connection *c)
{
	__u32 sensor = c->sensor, place;
	struct beginnings *known = bpf_map_lookup_elem(&beginnings, &sensor);
	__u16 port = bswap16(p->key.port);
	struct beginning *one;

	if (!known || known->count >= BEGINNINGS)
		return;
	for (place = 0; place < BEGINNINGS; place++) { /* its segments come again until one is taken */
		one = &known->of[place];
		if (one->opened && one->first == c->first && one->port == port)
			return;
	}
	place = __sync_fetch_and_add(&known->count, 1);
	if (place >= BEGINNINGS)
		return;
	one = &known->of[place];
	one->first = c->first;
	one->port = port;
	one->opened = c->opened;
}

#endif
