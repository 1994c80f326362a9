/* SPDX-License-Identifier: GPL-2.0-only */
/* What one sensor may take of what all share, so that none can starve the others. */
#ifndef MIDSTREAM_QUOTA_H
#define MIDSTREAM_QUOTA_H

#include "bpf.h"
#include "settings.h"
#include "tables.h"

/* The ring's position up to which the reader is done. It may retain what is behind that, for the logger, and no
 * sensor is to be refused for it.
 */
static __always_inline __u64 done_with(void)
{
	__u32 key = COMMITTED_READ;
	const __u64 *read = bpf_map_lookup_elem(&committed, &key);
	__u64 given_back = bpf_ringbuf_query(&ring, BPF_RB_CONS_POS);

	return read && *read > given_back ? *read : given_back;
}

/* May this sensor store a record of `size` bytes? Whoever does adds it to `younger`. Two CPUs that add
 * at the same time may lose one record's bytes: a quota is a fence, not an account.
 */
static __always_inline bool has_ring_share(struct share *share, __u32 size)
{
	if (share->younger + size > settings.ring_quota / 2) {
		if (done_with() < share->older_end)
			return false;
		share->older_end = bpf_ringbuf_query(&ring, BPF_RB_PROD_POS);
		share->younger = 0;
	}
	return true;
}

static __always_inline void give_back_connection(__u32 sensor)
{
	struct share *share = bpf_map_lookup_elem(&shares, &sensor);

	if (share)
		__sync_fetch_and_add(&share->open, -1);
}

#endif
