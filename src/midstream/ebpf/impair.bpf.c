// SPDX-License-Identifier: GPL-2.0-only
/* The lab's bad wire: TCP frames that enter the switch are dropped, duplicated, corrupted, or held back.
 *
 * Which frame suffers what is a function of the leg's key and the frame's number on that leg, and of nothing
 * else: the same frames meet the same faults. A frame that is dropped suffers nothing else; the other faults
 * combine. What is to arrive later goes through a ring to user space (midstream/lab/hold.py), because an
 * eBPF program cannot keep a packet, and not every kernel has a queueing discipline that delays.
 */
#include <linux/pkt_cls.h>

#include "bpf.h"
#include "const.h"
#include "packet.h"

static long (*const bpf_clone_redirect)(struct __sk_buff *skb, __u32 ifindex,
					__u64 flags) = (void *)BPF_FUNC_clone_redirect;

/* A leg leads from one port of the switch to another; ports are known by their interface numbers. */
struct leg_key {
	__u32 source;
	__u32 destination;
};

/* midstream/lab/faults.py says the same in Python. */
struct leg {
	__u64 key; /* of the generator: a hash of the seed and the hosts' names */
	__u64 seed; /* for the reader only */
	/* probabilities, in units of 2^-32 */
	__u64 drop;
	__u64 duplicate;
	__u64 reorder;
	__u64 corrupt;
	/* nanoseconds */
	__u64 delay; /* of every frame */
	__u64 hold;  /* of a reordered one, in addition */
	/* counters */
	__u64 frames;
	__u64 dropped;
	__u64 duplicated;
	__u64 reordered;
	__u64 corrupted;
	__u64 overflowed; /* dropped because the ring had no room for a frame that was to be held */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct leg_key);
	__type(value, struct leg);
	__uint(max_entries, 6); /* set by the loader: every pair of hosts */
} legs SEC(".maps");

struct mac {
	__u8 bytes[ETH_ALEN];
};

/* The port behind which a MAC address lives. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct mac);
	__type(value, __u32);
	__uint(max_entries, 3); /* set by the loader: the hosts */
} ports SEC(".maps");

/* A frame that leaves by `port` when CLOCK_MONOTONIC reaches `due`. midstream/lab/hold.py reads it. */
struct held {
	__u64 due;
	__u32 port;
	__u32 length;
	__u8 frame[ETH_HLEN + MTU];
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 8 << 20);
} held SEC(".maps");

enum draw { DRAW_DROP, DRAW_DUPLICATE, DRAW_REORDER, DRAW_CORRUPT, DRAW_PLACE, DRAWS };

/* A random number of 64 bits for each frame and purpose: the output function of SplitMix64 (Steele, Lea and
 * Flood, "Fast splittable pseudorandom number generators", 2014), which needs no state but a counter.
 */
static __always_inline __u64 draw(const struct leg *leg, __u64 number, enum draw purpose)
{
	__u64 x = leg->key + (number * DRAWS + purpose) * 0x9e3779b97f4a7c15ULL;

	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
	return x ^ (x >> 31);
}

static __always_inline bool happens(const struct leg *leg, __u64 number, enum draw purpose, __u64 probability)
{
	return (__u32)draw(leg, number, purpose) < probability;
}

static __always_inline bool hold(struct __sk_buff *skb, struct leg *leg, __u32 port, __u64 nanoseconds)
{
	__u32 last = skb->len - 1;
	struct held *h;

	h = bpf_ringbuf_reserve(&held, sizeof(*h), 0);
	if (!h)
		goto overflow;
	h->due = bpf_ktime_get_ns() + nanoseconds;
	h->port = port;
	h->length = skb->len;
	/* The verifier of 6.1 forgets that a length is not 0; of a masked value plus one it knows it. */
	barrier_var(last);
	last &= 0xffff;
	if (last >= sizeof(h->frame) || bpf_skb_load_bytes(skb, 0, h->frame, last + 1)) {
		bpf_ringbuf_discard(h, 0);
		goto overflow;
	}
	bpf_ringbuf_submit(h, 0);
	return true;

overflow:
	__sync_fetch_and_add(&leg->overflowed, 1);
	return false;
}

/* Change one byte of the TCP header or, half of the times if there is any, of the payload. A single wrong
 * byte is always a wrong checksum: it moves the sum by 1 to 255, or by that times 256, never by 65535.
 */
static __always_inline bool corrupt(struct __sk_buff *skb, const struct headers *h, __u64 random)
{
	__u32 start = ETH_HLEN + (IP_VERSION_LENGTH(&h->ip) & 0xf) * 4, end = ETH_HLEN + bswap16(h->ip.tot_len);
	__u32 payload;
	__u8 byte;

	if (end > skb->len)
		end = skb->len;
	if (bpf_skb_load_bytes(skb, start + 12, &byte, sizeof(byte)))
		return false;
	payload = start + (byte >> 4) * 4; /* the data offset (RFC 9293, section 3.1) */
	if (start < payload && payload < end) {
		if (random & 1)
			start = payload;
		else
			end = payload;
	}
	if (start >= end)
		return false;
	start += (__u32)(random >> 32) % (end - start);
	if (bpf_skb_load_bytes(skb, start, &byte, sizeof(byte)))
		return false;
	byte ^= 1 + (__u16)(random >> 16) % 255;
	return !bpf_skb_store_bytes(skb, start, &byte, sizeof(byte), 0);
}

SEC("tc") int midstream_impair(struct __sk_buff *skb)
{
	__u64 number, delay;
	struct leg_key key;
	struct headers h;
	struct leg *leg;
	__u32 *port;

	if (skb->protocol != bswap16(ETH_P_IP) || bpf_skb_load_bytes(skb, 0, &h, sizeof(h)) ||
	    h.ip.protocol != IPPROTO_TCP)
		return TC_ACT_UNSPEC;
	port = bpf_map_lookup_elem(&ports, h.eth.h_dest);
	if (!port)
		return TC_ACT_UNSPEC;
	key.source = skb->ifindex;
	key.destination = *port;
	leg = bpf_map_lookup_elem(&legs, &key);
	if (!leg)
		return TC_ACT_UNSPEC;

	number = __sync_fetch_and_add(&leg->frames, 1);
	delay = leg->delay;
	if (happens(leg, number, DRAW_DROP, leg->drop)) {
		__sync_fetch_and_add(&leg->dropped, 1);
		return TC_ACT_SHOT;
	}
	/* The copy is taken first: it is sound, and in its place. */
	if (happens(leg, number, DRAW_DUPLICATE, leg->duplicate) &&
	    (delay ? hold(skb, leg, key.destination, delay) : !bpf_clone_redirect(skb, key.destination, 0)))
		__sync_fetch_and_add(&leg->duplicated, 1);
	if (happens(leg, number, DRAW_CORRUPT, leg->corrupt) && corrupt(skb, &h, draw(leg, number, DRAW_PLACE)))
		__sync_fetch_and_add(&leg->corrupted, 1);
	if (happens(leg, number, DRAW_REORDER, leg->reorder)) {
		delay += leg->hold;
		__sync_fetch_and_add(&leg->reordered, 1);
	}
	if (!delay)
		return TC_ACT_UNSPEC;
	hold(skb, leg, key.destination, delay);
	return TC_ACT_SHOT;
}

char _license[] SEC("license") = "GPL";
