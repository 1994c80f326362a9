/* SPDX-License-Identifier: GPL-2.0-only */
/* The known sensors: who is none of them is a stranger. */
#ifndef MIDSTREAM_SENSORS_H
#define MIDSTREAM_SENSORS_H

#include "bpf.h"
#include "const.h"

/* Binary search, 12 halvings for the 4096 sensors that const.toml may name. The comparison is arithmetic: a
 * branch would make the verifier follow every path through the table, and refuse a large one.
 */
static __always_inline const struct sensor *find_sensor(__be32 address)
{
	__u32 ip = bswap32(address), found = 0;

	for (__u32 step = 2048; step; step >>= 1) {
		__u32 next = found + step;

		barrier_var(next);
		if (next < SENSOR_COUNT)
			found += step & (__u32)(((__s64)SENSORS[next].ip - 1 - ip) >> 63); /* step if not above ip */
	}
	barrier_var(found);
	return found < SENSOR_COUNT && SENSORS[found].ip == ip ? (const struct sensor *)&SENSORS[found] : NULL;
}

#endif
