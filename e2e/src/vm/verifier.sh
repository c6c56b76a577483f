#!/bin/sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for f in /m/*; do insmod $f; done
exec </dev/console >/dev/console 2>&1
mount -t ext4 /dev/vda /volume || { echo "the volume cannot be mounted"; poweroff -f; }
ios=0 errors=0 bad=0 step=0
report() { printf '\nIOS=%08X ERR=%08X BAD=%08X\n' $ios $errors $bad; }
while :; do
    slot=$((step * 7 % 32))
    file=/volume/$slot sums=/sums/$slot
    # What was written the last time round, long dropped from memory.
    if [ -f $sums ]; then
        if sum=$(md5sum <$file); then
            if [ "$sum" = "$(cat $sums)" ]; then ios=$((ios + 1)); else bad=$((bad + 1)); report; fi
        else
            errors=$((errors + 1)); report
        fi
    fi
    head -c 65536 /dev/urandom >/sums/new
    if dd if=/sums/new of=$file bs=65536 conv=fsync 2>/dev/null; then
        md5sum </sums/new >$sums
        ios=$((ios + 1))
    else
        rm -f $sums
        errors=$((errors + 1)); report
    fi
    # 4: without a line on the console.
    echo 5 >/proc/sys/vm/drop_caches
    printf .
    step=$((step + 1))
    [ $((step % 4)) = 0 ] && report
done
